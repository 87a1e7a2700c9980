"""The probe that lists parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.subject import Subject


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_proj = nn.Linear(2, 3)
        self.embed_tokens = nn.Embedding(5, 3)
        self.lm_head = nn.Linear(3, 5, bias=False)
        self.lm_head.weight = self.embed_tokens.weight


def gather(**fields) -> Parameters:
    return Gatherer(Subject(**fields))(Parameters)


def test_lists_each_tensor_once() -> None:
    found = gather(model=Tied())
    assert [p.name for p in found.parameters] == [
        "vision_proj.weight",
        "vision_proj.bias",
        "embed_tokens.weight",
    ]
    assert [p.role for p in found.parameters] == ["projector", "projector", "language"]
    assert found.parameters[0].numel == 6
    assert {p.in_optimizer for p in found.parameters} == {None}
    assert {p.wanted for p in found.parameters} == {None}


def test_a_tied_tensor_is_wanted_under_each_of_its_names() -> None:
    found = gather(model=Tied(), trainable=["lm_head", "mm_projector"])
    assert [p.name for p in found.parameters if p.wanted] == ["embed_tokens.weight"]
    assert found.unmatched == ("mm_projector",)


def test_counts_what_the_optimizers_hold() -> None:
    model = Tied()
    first = torch.optim.SGD(model.vision_proj.parameters(), lr=0.5)
    second = torch.optim.AdamW([model.vision_proj.bias, nn.Parameter(torch.zeros(1))], lr=0.1)
    found = gather(model=model, optimizer=[first, second])
    assert [p.in_optimizer for p in found.parameters] == [1, 2, 0]
    assert [p.lr for p in found.parameters] == [0.5, 0.1, None]
    assert found.foreign == 1


def test_needs_a_model() -> None:
    with pytest.raises(Unavailable, match="no model"):
        gather(model=None)
