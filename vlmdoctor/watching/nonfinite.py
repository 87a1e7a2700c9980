"""Where a NaN or infinity came from: the pass that made it is run once more under hooks.

The weights are those of the failed pass, since this happens before the optimizer steps. Random
numbers, buffers and gradients are afterwards what they were.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmdoctor.evidence.steps import NonFinite
from vlmdoctor.plain_text import raised
from vlmdoctor.subject import canonical_name
from vlmdoctor.watching.measure import local

NAMED = 8  # parameters named at most
_COMMUNICATES = "a forward pass of this model waits for other processes, so that it can't be run again here"


@dataclass
class Forward:
    """What it takes to run a forward pass again."""

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rng: list[Tensor]


def rng_states(devices: Sequence[torch.device]) -> list[Tensor]:
    """The states of torch's generators: the CPU's, then each CUDA device's."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda")]


def set_rng_states(devices: Sequence[torch.device], states: list[Tensor]) -> None:
    """Sets what `rng_states` returned."""
    torch.set_rng_state(states[0])
    for device, state in zip((d for d in devices if d.type == "cuda"), states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)


def explain_loss(forward: Forward, model: nn.Module, step: int) -> NonFinite:
    """Why the loss of `forward` is not finite."""
    if spoiled := nonfinite_weights(model):
        return NonFinite(step, "weight", parameters=spoiled[:NAMED])
    if inputs := nonfinite_inputs(forward):
        return NonFinite(step, "loss", inputs_finite=False, inputs=inputs)
    if communicates(model):
        return NonFinite(step, "loss", inputs_finite=True, why_unknown=_COMMUNICATES)
    try:
        culprit, still = _replay_forward(forward)
    except Exception as error:
        why = f"running the forward pass again failed ({raised(error)})"
        return NonFinite(step, "loss", inputs_finite=True, why_unknown=why)
    if culprit is None:
        why = (
            "no module turned finite inputs into a non-finite output"
            if still
            else "the forward pass was finite when it was run again"
        )
        return NonFinite(step, "loss", inputs_finite=True, why_unknown=why)
    return NonFinite(
        step,
        "loss" if culprit.is_root and culprit.only_loss else "activation",
        module=culprit.name,
        module_class=culprit.module_class,
        inputs_finite=True,
        largest=culprit.largest,
    )


def explain_gradient(forward: Forward | None, model: nn.Module, names: Sequence[str], step: int) -> NonFinite:
    """Why gradients are not finite although the loss is; `names` are theirs, nearest the loss first."""
    parameters = tuple(names[:NAMED])
    if forward is None or communicates(model):
        why = _COMMUNICATES if forward else "the batch was no longer at hand when the gradients were read"
        return NonFinite(step, "gradient", parameters=parameters, why_unknown=why)
    inputs = nonfinite_inputs(forward)
    try:
        culprit = _replay_backward(forward, model)
        why = None if culprit else "no module made a finite gradient non-finite in the last batch"
    except Exception as error:
        culprit, why = None, f"running the backward pass again failed ({raised(error)})"
    return NonFinite(
        step,
        "gradient",
        module=culprit.name if culprit else None,
        module_class=culprit.module_class if culprit else None,
        inputs_finite=not inputs,
        inputs=inputs,
        parameters=parameters,
        largest=culprit.largest if culprit else None,
        why_unknown=why,
    )


def communicates(model: nn.Module) -> bool:
    """Whether a forward pass needs all processes: repeated in one of them alone it would hang for ever."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    kinds = ("SyncBatchNorm", "FullyShardedDataParallel", "DeepSpeedEngine")
    return any(type(module).__name__ in kinds for module in model.modules()) or any(
        hasattr(parameter, "to_local") or hasattr(parameter, "ds_id") for parameter in model.parameters()
    )


def nonfinite_weights(model: nn.Module) -> tuple[str, ...]:
    """Canonical names of the parameters that hold NaN or infinity."""
    return tuple(
        canonical_name(name)
        for name, parameter in model.named_parameters()
        if parameter.is_floating_point() and not bool(torch.isfinite(local(parameter.detach())).all())
    )


def nonfinite_inputs(forward: Forward) -> tuple[str, ...]:
    """Which of the model's inputs hold NaN or infinity; masks may hold minus infinity."""
    given = {**{f"argument {place}": value for place, value in enumerate(forward.args)}, **forward.kwargs}
    for name, value in list(given.items()):
        if isinstance(value, Mapping):
            del given[name]
            given.update(value)
    return tuple(
        str(name)
        for name, value in given.items()
        if any(_spoiled(tensor, minus_infinity="mask" not in str(name)) for tensor in tensors_in(value))
    )


def tensors_in(value: Any, depth: int = 5) -> Iterator[Tensor]:
    """The floating-point tensors in nested tuples, lists, mappings and attributes of plain objects."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
        return
    if isinstance(value, Mapping):
        items = value.values()
    elif isinstance(value, list | tuple):
        items = value
    else:
        items = () if isinstance(value, nn.Module | type) else getattr(value, "__dict__", {}).values()
    if depth:
        for item in items:
            yield from tensors_in(item, depth - 1)


@dataclass
class _Culprit:
    name: str
    module_class: str
    largest: float | None
    is_root: bool
    only_loss: bool


def _replay_forward(forward: Forward) -> tuple[_Culprit | None, bool]:
    """The first module to turn finite inputs into a non-finite output, and whether any output was."""
    found: list[_Culprit] = []
    seen = False

    def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal seen
        # What builds a mask means its minus infinities; what has weights never does.
        weighted = next(module.parameters(), None) is not None
        if found or not any(_spoiled(tensor, minus_infinity=weighted) for tensor in tensors_in(output)):
            return
        seen = True
        inputs = [*tensors_in(args), *tensors_in(kwargs)]
        # Children end before their parents, so this names the innermost one; where the fault lies
        # in a parent's own code, its children's inputs are spoiled and it is the parent that counts.
        if not any(_spoiled(tensor, minus_infinity=False) for tensor in inputs):
            found.append(_culprit(forward.module, module, names[module], inputs, output))

    root = _unwrapped(forward.module)
    names = {module: canonical_name(name) for name, module in root.named_modules()}
    handles = [module.register_forward_hook(look, with_kwargs=True) for module in names]
    try:
        with _as_before(forward), torch.no_grad():
            root(*forward.args, **forward.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return (found[0] if found else None), seen


def _replay_backward(forward: Forward, model: nn.Module) -> _Culprit | None:
    """The first module whose gradient was finite where it came in and not where it went out."""
    found: list[_Culprit] = []
    inputs_of: dict[nn.Module, list[Tensor]] = {}

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs_of[module] = [tensor.detach() for tensor in (*tensors_in(args), *tensors_in(kwargs))]

    def look(module: nn.Module, grad_inputs: Any, grad_outputs: Any) -> None:
        came, went = list(tensors_in(grad_outputs)), list(tensors_in(grad_inputs))
        if not found and any(map(_spoiled, went)) and not any(map(_spoiled, came)):
            found.append(_culprit(forward.module, module, names[module], inputs_of.get(module, []), None))

    root = _unwrapped(forward.module)
    names = {module: canonical_name(name) for name, module in root.named_modules()}
    handles = [
        handle
        for module in names
        for handle in (
            module.register_forward_pre_hook(keep, with_kwargs=True),
            module.register_full_backward_hook(look),
        )
    ]
    try:
        with _as_before(forward), torch.enable_grad():
            loss = find_loss(root(*forward.args, **forward.kwargs))
            wanted = [p for p in model.parameters() if p.requires_grad]
            if loss is not None:
                # Not backward(): that would add to the gradients that the run holds.
                torch.autograd.grad(loss, wanted, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def find_loss(output: Any) -> Tensor | None:
    """The loss in a model's output: `.loss`, ["loss"], a scalar, or the scalar that a tuple begins with."""
    if isinstance(output, Mapping):
        output = output.get("loss")
    elif isinstance(output, list | tuple):
        output = output[0] if output else None
    elif not isinstance(output, Tensor):
        output = getattr(output, "loss", None)
    if isinstance(output, Tensor) and output.numel() == 1 and output.is_floating_point():
        return output
    return None


def _culprit(root: nn.Module, module: nn.Module, name: str, inputs: list[Tensor], output: Any) -> _Culprit:
    kind = type(module).__name__
    is_root = not name
    loss = find_loss(output)
    others = [tensor for tensor in tensors_in(output) if tensor is not loss]
    largest = [float(t.detach().abs().masked_fill(~torch.isfinite(t), 0).max()) for t in inputs if t.numel()]
    return _Culprit(
        name=f"{kind}.forward" if is_root else name,
        module_class=kind,
        largest=max(largest, default=None),
        is_root=is_root,
        only_loss=loss is not None and not any(map(_spoiled, others)),
    )


def _spoiled(tensor: Tensor, minus_infinity: bool = True) -> bool:
    values = tensor.detach()
    if bool(torch.isfinite(values).all()):
        return False
    return minus_infinity or bool((values.isnan() | values.isposinf()).any())


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module that torch.compile wraps: the hooks of a replay must run as Python."""
    return getattr(module, "_orig_mod", module)


@contextlib.contextmanager
def _as_before(forward: Forward) -> Iterator[None]:
    """Runs a pass from the same random numbers on copies of the buffers, and leaves no trace of it."""
    devices = list({parameter.device for parameter in forward.module.parameters()})
    after = rng_states(devices)
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None
    # Swapped, not copied back: autograd still holds the originals for the backward to come.
    buffers = [
        (module, name, buffer)
        for module in forward.module.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    for module, name, buffer in buffers:
        module._buffers[name] = buffer.clone()
    try:
        set_rng_states(devices, forward.rng)
        yield
    finally:
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
        set_rng_states(devices, after)
        random.setstate(python)
        if numpy:
            numpy.random.set_state(numpy_state)
        # Weights that autocast converted during the replay have no gradient history.
        torch.clear_autocast_cache()
