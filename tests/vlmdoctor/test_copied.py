"""A copy of a model runs itself, whatever was put in the place of its forward."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from vlmdoctor.sandbox.clone import clone_together


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor, plus: float = 0.0) -> torch.Tensor:
        return x * self.weight + plus


def wrapped(model: nn.Module) -> Callable[..., Any]:
    forward = model.forward

    @functools.wraps(forward)
    def around(*args: Any, **keywords: Any) -> Any:
        return forward(*args, **{"plus": 1.0, **keywords})

    return around


def by_default(model: nn.Module) -> Callable[..., Any]:
    def around(x: torch.Tensor, forward: Any = model.forward, *, known: nn.Module = model) -> Any:
        assert forward.__self__ is known
        return forward(x) + 1.0

    return around


def calling_itself(model: nn.Module) -> Callable[..., Any]:
    forward = model.forward

    def around(x: torch.Tensor, again: bool = True) -> Any:
        return around(x, again=False) + 1.0 if again else forward(x)

    return around


WAYS: dict[str, Callable[[nn.Module], Callable[..., Any]]] = {
    "closure": wrapped,
    "itself": calling_itself,
    "default": by_default,
    "partial": lambda model: functools.partial(model.forward, plus=1.0),
    "no_grad": lambda model: torch.no_grad()(wrapped(model)),
    "twice": lambda model: (setattr(model, "forward", wrapped(model)), wrapped(model))[1],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_replaced_forward_belongs_to_the_copy(way: str) -> None:
    model = nn.Sequential(Scale())
    model[0].forward = WAYS[way](model[0])
    twin, optimizer = clone_together(model, torch.optim.SGD(model.parameters(), lr=1.0))
    with torch.no_grad():
        twin[0].weight.fill_(5.0)
    x = torch.tensor(1.0)
    assert (twin(x).item(), model(x).item()) == (6.0, 3.0)
    assert optimizer.param_groups[0]["params"][0] is twin[0].weight


def test_a_compiled_forward_is_not_compiled_anew() -> None:
    model, compiled = Scale(), 0

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.nn.Module:
        nonlocal compiled
        compiled += 1
        return graph

    model.forward = torch.compile(model.forward, backend=backend)
    (twin,) = clone_together(model)
    twin(torch.tensor(1.0)).backward()
    assert (twin.weight.grad, model.weight.grad, compiled) == (torch.tensor(1.0), None, 0)
