"""Running a pass once more under hooks, to see where a number stopped being finite.

The weights are those of the failed pass, since this happens before the optimizer steps. All that the pass may
change is afterwards what it was, bit for bit; where that can't be, nothing is run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.probes.places import Place, called_at
from vlmdoctor.sandbox.call import loss_itself
from vlmdoctor.sandbox.restore import same_random_states
from vlmdoctor.watching.finite import is_spoiled, tensors_in
from vlmdoctor.watching.guarded import Undo
from vlmdoctor.watching.reach import Reached
from vlmdoctor.watching.writes import Unkeepable, Writes

__all__ = ["Culprit", "ReplayInput", "Unkeepable", "backward_again", "forward_again", "rng_states"]


class ReplayInput:
    """What it takes to run a forward pass again; the module is not kept alive by it."""

    def __init__(self, module: nn.Module, args: Any, kwargs: Any, rng: list[Tensor]) -> None:
        self._module = weakref.ref(module)
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self.rng = rng

    @property
    def module(self) -> nn.Module:
        """The module that was called."""
        module = self._module()
        if module is None:
            raise Unkeepable("the model is gone")
        return module

    def forget(self) -> None:
        """Lets the inputs go."""
        self.args, self.kwargs = (), {}


@dataclass
class Culprit:
    """The module where it happened.

    Attributes:
        largest: The largest finite magnitude that came in.
        only_loss: Whether nothing but the loss was not finite.
    """

    name: str
    module_class: str
    largest: float | None
    is_root: bool
    only_loss: bool
    place: Place | None = None


def rng_states(devices: Sequence[torch.device]) -> list[Tensor]:
    """The states of torch's generators: the CPU's, then each CUDA device's."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda")]


def set_rng_states(devices: Sequence[torch.device], states: list[Tensor]) -> None:
    """Sets what `rng_states` returned."""
    torch.set_rng_state(states[0])
    for device, state in zip((d for d in devices if d.type == "cuda"), states[1:], strict=True):
        torch.cuda.set_rng_state(state, device)


def forward_again(forward: ReplayInput) -> tuple[Culprit | None, bool]:
    """The first module to turn finite inputs into a non-finite output, and whether any output was.

    Raises:
        Unkeepable: The pass can't be run without a trace.
        Exception: What the pass raised.
    """
    found: list[Culprit] = []
    seen = False

    def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal seen
        # What builds a mask means its minus infinities; what has weights never does.
        weighted = next(module.parameters(), None) is not None
        if found or not any(is_spoiled(tensor, minus_infinity=weighted) for tensor in tensors_in(output)):
            return
        seen = True
        inputs = [*tensors_in(args), *tensors_in(kwargs)]
        # Children end before their parents, so this names the innermost one; where the fault lies
        # in a parent's own code, its children's inputs are spoiled and it is the parent that counts.
        if not any(is_spoiled(tensor, minus_infinity=False) for tensor in inputs):
            culprit = _culprit(module, names[id(module)], inputs, output)
            found.append(dataclasses.replace(culprit, place=called_at()))

    root = _unwrapped(forward.module)
    names = {id(module): canonical_name(name) for name, module in root.named_modules()}
    with _without_a_trace(forward), torch.no_grad():
        for module in root.modules():
            module.register_forward_hook(look, with_kwargs=True)
        root(*forward.args, **forward.kwargs)
    return (found[0] if found else None), seen


def backward_again(forward: ReplayInput, model: nn.Module) -> Culprit | None:
    """The first module whose gradient was finite where it came in and not where it went out.

    Raises:
        Unkeepable: The pass can't be run without a trace.
        Exception: What the pass raised.
    """
    found: list[Culprit] = []
    inputs_of: dict[int, list[Tensor]] = {}
    places: dict[int, Place | None] = {}

    def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
        inputs_of[id(module)] = [tensor.detach() for tensor in (*tensors_in(args), *tensors_in(kwargs))]
        places[id(module)] = called_at()

    def look(module: nn.Module, grad_inputs: Any, grad_outputs: Any) -> None:
        came, went = list(tensors_in(grad_outputs)), list(tensors_in(grad_inputs))
        if not found and any(map(is_spoiled, went)) and not any(map(is_spoiled, came)):
            culprit = _culprit(module, names[id(module)], inputs_of.get(id(module), []), None)
            found.append(dataclasses.replace(culprit, place=places.get(id(module))))

    root = _unwrapped(forward.module)
    names = {id(module): canonical_name(name) for name, module in root.named_modules()}
    with _without_a_trace(forward), torch.enable_grad():
        for module in root.modules():
            # What the user hooked to backward passes is no part of the model, and would count one more.
            module._backward_hooks.clear()
            module._backward_pre_hooks.clear()
            module._is_full_backward_hook = None
            module.register_forward_pre_hook(keep, with_kwargs=True)
            module.register_full_backward_hook(look)
        loss = loss_itself(root(*forward.args, **forward.kwargs))
        wanted = [p for p in model.parameters() if p.requires_grad]
        if loss is not None:
            # Not backward(): that would add to the gradients that the run holds.
            torch.autograd.grad(loss, wanted, allow_unused=True)
    return found[0] if found else None


def _culprit(module: nn.Module, name: str, inputs: list[Tensor], output: Any) -> Culprit:
    kind = type(module).__name__
    loss = loss_itself(output)
    others = [tensor for tensor in tensors_in(output) if tensor is not loss]
    largest = [float(t.detach().abs().masked_fill(~torch.isfinite(t), 0).max()) for t in inputs if t.numel()]
    return Culprit(
        name=name or f"{kind}.forward",
        module_class=kind,
        largest=max(largest, default=None),
        is_root=not name,
        only_loss=loss is not None and not any(map(is_spoiled, others)),
    )


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module that torch.compile wraps: the hooks of a replay must run as Python."""
    return getattr(module, "_orig_mod", module)


@contextlib.contextmanager
def _without_a_trace(forward: ReplayInput) -> Iterator[None]:
    """Runs what is inside from the pass's random numbers, and puts back all that it changes."""
    undo = Undo()
    devices = list({parameter.device for parameter in forward.module.parameters()})
    with same_random_states():
        reached = Reached([forward.module, forward.args, forward.kwargs])
        writes = Writes()
        # Weights that autocast converted during the replay have no gradient history.
        undo.push(torch.clear_autocast_cache)
        dtype, enabled = torch.get_default_dtype(), torch.is_grad_enabled()
        undo.push(lambda: torch.set_default_dtype(dtype))
        undo.push(lambda: torch.set_grad_enabled(enabled))
        undo.push(reached.restore)
        for tensor in reached.tensors:
            if tensor.is_leaf and tensor._backward_hooks:
                undo.push(_put_back(tensor._backward_hooks))
        # Written values come back before what points to them.
        undo.push(writes.restore)
        try:
            for tensor in reached.tensors:
                if tensor.is_leaf and tensor._backward_hooks:
                    tensor._backward_hooks.clear()
            set_rng_states(devices, forward.rng)
            with (
                torch.compiler.set_stance("force_eager"),
                torch.autograd.graph.saved_tensors_hooks(_same, _same),
                warnings.catch_warnings(),
                writes,
            ):
                # The run has said its own already; the hooks here make torch say some more.
                warnings.simplefilter("ignore")
                yield
            if writes.refused is not None:
                raise writes.refused
        finally:
            undo.finish()


def _put_back(hooks: dict[int, Any]) -> Any:
    kept = dict(hooks)

    def put_back() -> None:
        hooks.clear()
        hooks.update(kept)

    return put_back


def _same(tensor: Any) -> Any:
    return tensor
