"""One training step without weights: shapes, gradient reach, bytes and operations."""

from __future__ import annotations

import contextlib
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import _engine_run_backward

from vlmdoctor.dryrun.abstract import Abstract
from vlmdoctor.dryrun.attention import kernel_of
from vlmdoctor.dryrun.autocast import Autocast
from vlmdoctor.dryrun.ledger import Ledger
from vlmdoctor.dryrun.ranks import local
from vlmdoctor.dryrun.unknown import ValueUnknown
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.plain_text import text_of
from vlmdoctor.sandbox.call import run
from vlmdoctor.sandbox.restore import copy_of

# What torch says where no operator is dispatched, so that `Abstract` sees nothing.
_WITHOUT_VALUE = {
    "Tensor.tolist": "tolist() shouldn't be called on a tensor with unallocated storage",
    "Tensor.numpy": "can't convert meta device type tensor to numpy",
    "aten.repeat_interleave": "cannot repeat_interleave a meta tensor",
    "aten._to_copy": "Cannot copy out of meta tensor",
}


@dataclass
class Visit:
    """What one module saw: the shapes of its first call, and how often it was called."""

    shape_in: tuple[int, ...] | None = None
    shape_out: tuple[int, ...] | None = None
    calls: int = 0
    kept: int = 0


@dataclass
class DryStep:
    """What one step gave.

    Attributes:
        error: What forward or backward raised.
        phase: `forward` or `backward`: how far it came.
        visits: By canonical module name.
        reached: Canonical names of the parameters that got a gradient.
        saved: Bytes alive between forward and backward.
        peak: The most bytes alive at once, gradients included, parameters not.
        peak_at: (phase, module, operator).
        peak_parts: Those bytes by purpose: gradients, activations, gathered weights, temporary.
        flops_forward, flops_backward: Floating-point operations.
        flops: Those of forward, by module.
        loss: Whether there was a loss to go back from.
    """

    error: Exception | None = None
    phase: str = "forward"
    visits: dict[str, Visit] = field(default_factory=dict)
    reached: frozenset[str] = frozenset()
    saved: int = 0
    peak: int = 0
    peak_at: tuple[str, str, str] = ("", "", "")
    peak_parts: dict[str, int] = field(default_factory=dict)
    flops_forward: int = 0
    flops_backward: int = 0
    flops: dict[str, int] = field(default_factory=dict)
    loss: bool = False


def dry_step(
    model: nn.Module,
    batch: Any,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    *,
    device: str = "cuda",
    autocast: torch.dtype | None = None,
    spread: bool = False,
) -> DryStep:
    """Runs forward and backward of `model`, which has to be laid out without weights (`laid_out`).

    Args:
        model: It is used up: gradients and hooks stay on it. It may be sharded (`ranks.sharded`).
        device: Whose attention kernels are assumed: `cuda` or `cpu`.
        autocast: The lower precision of autocast around forward; None without.
        spread: Whether tokens are assumed to choose experts evenly, which is else unknown.

    Raises:
        ValueUnknown: An operator needs a value that nobody has.
    """
    ledger, step = Ledger(), DryStep()
    batch = _in_dtype(copy_of(batch), _float_dtype(model))
    ledger.already(map(local, [*model.parameters(), *model.buffers()]))
    _watch(model, ledger, step.visits)
    casting = None if autocast is None else Autocast(autocast, device)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(ledger.resizes())
        stack.enter_context(Abstract(ledger.observe, kernel_of(device), spread))
        if casting is not None:
            stack.enter_context(casting)
        try:
            loss, logits = run(model, batch, loss_fn)
            if casting is not None:
                casting.forget()
            step.saved = ledger.live
            del logits
            ledger.end_forward()
            if loss is not None and loss.requires_grad:
                step.loss, ledger.phase, step.phase, ledger.module = True, "backward", "backward", ""
                _backward(loss)
        except ValueUnknown:
            raise
        except Exception as error:
            if (operator := _needing_a_value(error)) is not None:
                raise ValueUnknown(operator) from error
            if (asked := _about_devices(error)) is not None:
                raise ValueUnknown(asked, "(in a dry run, floats are on none)") from error
            step.error = error
    for parameter in model.parameters():
        if parameter.grad is not None:
            ledger.gradient(local(parameter.grad))
    step.peak, step.peak_at, step.peak_parts = ledger.peak, ledger.peak_at, ledger.at_peak()
    step.reached = frozenset(canonical_name(n) for n, p in model.named_parameters() if p.grad is not None)
    for (phase, module), count in ledger.flops.items():
        if phase == "forward":
            step.flops_forward += count
            step.flops[module] = step.flops.get(module, 0) + count
        else:
            step.flops_backward += count
    return step


def _needing_a_value(error: Exception) -> str | None:
    """The operator that met a tensor without a value, where torch itself said so."""
    text = text_of(error)
    return next((name for name, said in _WITHOUT_VALUE.items() if said in text), None)


# How code asks where a tensor is, and what torch says where two are on different devices.
_ASKED_DEVICE = re.compile(r"\bdevice\b|\bis_(cuda|cpu|meta|xpu|mps)\b|get_device\(")
_SAID_DEVICE = re.compile(r"\bmeta\b.*\bdevice\b|\bdevice\b.*\bmeta\b", re.DOTALL)


def _about_devices(error: Exception) -> str | None:
    """What to say of an error that is due to the dry run's own devices, and to no shape; else None."""
    if isinstance(error, RuntimeError | ValueError) and _SAID_DEVICE.search(str(error)):
        return "an operator that asks where tensors are"
    if not isinstance(error, AssertionError):
        return None
    frames = traceback.extract_tb(error.__traceback__)
    asked = [*(str(frame.line) for frame in frames[-1:]), str(error)]
    return "an assertion on devices" if any(map(_ASKED_DEVICE.search, asked)) else None


def _backward(loss: torch.Tensor) -> None:
    # Tensor.backward would take the attention kernel's mode off while it runs, and blocks that are
    # computed again in backward need it.
    seed = torch.empty_like(loss, device="meta") if loss.is_meta else torch.ones_like(loss)
    _engine_run_backward((loss,), (seed,), False, False, (), allow_unreachable=True, accumulate_grad=True)


def _watch(model: nn.Module, ledger: Ledger, visits: dict[str, Visit]) -> None:
    running: list[tuple[str, int]] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if ledger.phase == "backward":  # computed again, under checkpointing
                return
            running.append((name, ledger.live))
            ledger.module = name
            visit = visits.setdefault(name, Visit())
            visit.calls += 1
            if visit.shape_in is None:
                visit.shape_in = _first_shape((*args, *kwargs.values()))

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            if ledger.phase == "backward":
                return
            while running:
                left, before = running.pop()
                if left == name:
                    visits[name].kept += ledger.live - before
                    break
            ledger.module = running[-1][0] if running else ""
            if visits[name].shape_out is None:
                visits[name].shape_out = _first_shape(out)

        return hook

    for name, module in model.named_modules():
        canonical = canonical_name(name + ".").rstrip(".")
        module.register_forward_pre_hook(enter(canonical), with_kwargs=True)
        module.register_forward_hook(leave(canonical))


def _first_shape(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return next((shape for part in parts if (shape := _first_shape(part)) is not None), None)


def _float_dtype(model: nn.Module) -> torch.dtype | None:
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def _in_dtype(batch: Any, dtype: torch.dtype | None) -> Any:
    """Floats of the batch in the model's dtype, as a training loop hands them over."""
    from torch.utils._pytree import tree_map_only

    def cast(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

    return tree_map_only(torch.Tensor, cast, batch)
