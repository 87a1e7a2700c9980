"""A dry step says of tiny models what a real step does: shapes, gradient reach, and bytes."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from vlmdoctor.dryrun.abstract import Abstract
from vlmdoctor.dryrun.attention import Kernel
from vlmdoctor.dryrun.layout import laid_out
from vlmdoctor.dryrun.ledger import Ledger
from vlmdoctor.dryrun.step import dry_step
from vlmdoctor.invoke import run
from vlmdoctor.subject import canonical_name
from vlmdoctor.unchanged import copy_of

FAMILIES = [*families.VLMS, *families.DECODERS]


def saved_bytes(model: Any, batch: Any, step: Any) -> int:
    """Bytes that autograd keeps for backward, parameters and buffers aside."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and tensor.is_floating_point():
            kept[storage._cdata] = storage
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = step(model, batch)
    total = sum(storage.nbytes() for storage in kept.values())
    del output
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_a_dry_step_equals_a_real_one(family: str) -> None:
    model, batch = families.build(family)
    shapes: dict[str, tuple[int, ...]] = {}

    def remember(name: str) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            if isinstance(out, torch.Tensor):
                shapes.setdefault(name, tuple(out.shape))

        return hook

    twin = laid_out(model)
    step = dry_step(twin, batch, device="cpu")
    hooks = [m.register_forward_hook(remember(canonical_name(n))) for n, m in model.named_modules()]
    loss, _ = run(model, copy_of(batch), None)
    loss.backward()
    for hook in hooks:
        hook.remove()

    assert step.error is None
    assert shapes == {name: step.visits[name].shape_out for name in shapes}
    got = {canonical_name(name) for name, p in model.named_parameters() if p.grad is not None}
    assert step.reached == got


@pytest.mark.parametrize("family", FAMILIES)
def test_it_saves_the_bytes_that_a_real_step_saves(family: str) -> None:
    model, batch = families.build(family)
    real = saved_bytes(model, copy_of(batch), lambda m, b: run(m, b, None))
    twin = laid_out(model)

    def dry(m: Any, b: Any) -> Any:
        with Abstract(), Kernel("cpu"):
            return run(m, b, None)

    assert saved_bytes(twin, copy_of(batch), dry) == real


@pytest.mark.parametrize("family", FAMILIES)
def test_its_peak_is_that_of_a_real_step(family: str) -> None:
    """The same ledger over real operators: what is alive at once on a CPU."""
    from torch.utils._python_dispatch import TorchDispatchMode

    model, batch = families.build(family)
    real = Ledger()
    real.already([*model.parameters(), *model.buffers()])

    class Observing(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            real.observe(func, args, kwargs or {}, out)
            return out

    with Observing():
        loss, logits = run(model, copy_of(batch), None)
        del logits
        loss.backward()
    step = dry_step(laid_out(model), batch, device="cpu")
    assert step.peak == pytest.approx(real.peak, rel=0.1)
    assert step.flops_forward + step.flops_backward == sum(real.flops.values())
