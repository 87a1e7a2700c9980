"""Tensors that were reached: their values, storages, gradients, hooks and versions, kept and restored."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from vlmdoctor.sandbox.kept_tensors import KeptTensors

Undo = Callable[[], Any]
# Weights are only written to by a forward pass in rare layouts (an embedding with max_norm). Up to this
# many bytes all of them are kept; in larger models only those known to do it.
KEPT_BYTES = 256 << 20


def is_weight(tensor: torch.Tensor) -> bool:
    """Whether an optimizer may train it: a parameter, or a plain tensor that asks for gradients."""
    return isinstance(tensor, nn.Parameter) or (tensor.is_leaf and tensor.requires_grad)


def to_keep(found: Iterable[torch.Tensor], model: Any, *, learns: bool) -> list[torch.Tensor]:
    """Those whose values are kept."""
    tensors = [tensor for tensor in found if not tensor.is_meta and tensor.layout is torch.strided]
    weights = [tensor for tensor in tensors if is_weight(tensor)]
    if learns or sum(weight.nbytes for weight in weights) <= KEPT_BYTES:
        return tensors
    renormed = {
        id(getattr(module, "weight", None))
        for module in (model.modules() if isinstance(model, nn.Module) else ())
        if getattr(module, "max_norm", None) is not None
    }
    dropped = {id(weight) for weight in weights} - renormed
    return [tensor for tensor in tensors if id(tensor) not in dropped]


def keep_values(tensors: list[torch.Tensor], owner: object, *, learns: bool) -> list[Undo]:
    """What gives tensors the values, storages and versions that they have now; `owner` has names for them."""
    aside = learns or sum(tensor.nbytes for tensor in tensors) > KEPT_BYTES
    written = [_whole_storage(tensor) if _overlaps(tensor) else tensor for tensor in tensors]
    places = [(tensor, tensor.detach()) for tensor in tensors]
    kept = KeptTensors(written, aside=aside, owner=owner if isinstance(owner, nn.Module) else None)
    plain = tuple(tensor for tensor in tensors if not tensor.is_inference())
    versions = tuple(tensor._version for tensor in plain)

    def to_their_places() -> None:
        for tensor, place in places:
            if tensor.data_ptr() != place.data_ptr() or tensor.shape != place.shape:
                _move_back(tensor, place)

    def to_their_versions() -> None:
        torch._C._autograd._unsafe_set_version_counter(plain, versions)

    # A graph that is still needed refuses tensors that were written to, although they are restored.
    return [to_their_places, kept.restore, to_their_versions]


def _move_back(tensor: torch.Tensor, place: torch.Tensor) -> None:
    with torch.no_grad():
        tensor.data = place


def _overlaps(tensor: torch.Tensor) -> bool:
    """Whether elements share their memory, as those of an expanded tensor do: it can't be written to."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _whole_storage(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def set_gradients_aside(tensors: Iterable[torch.Tensor], push: Callable[[Undo], Any], *, clear: bool) -> None:
    """Keeps every gradient and hook; where `clear`, inside each `.grad` is None and no hook runs after it.

    Args:
        push: Takes what undoes a change, before it is made.
    """
    leaves = [tensor for tensor in tensors if tensor.is_leaf and not tensor.is_inference()]
    gradients = [(leaf, leaf.grad, leaf.requires_grad) for leaf in leaves]
    # They are held by autograd too, so that emptying the dictionary is what silences them.
    hooks = [
        (leaf, name, held, {} if held is None else held.copy())
        for leaf in leaves
        for name in ("_post_accumulate_grad_hooks", "_backward_hooks")
        for held in (getattr(leaf, name, None),)
    ]

    def gradients_back() -> None:
        for leaf, gradient, requires in gradients:
            if leaf.requires_grad != requires:
                leaf.requires_grad_(requires)
            if leaf.grad is not gradient:
                leaf.grad = gradient

    def hooks_back() -> None:
        for leaf, name, held, kept in hooks:
            now = getattr(leaf, name, None)
            if now is not held:
                if now:
                    now.clear()
                setattr(leaf, name, held)
            if held is not None and held.keys() != kept.keys():
                held.clear()
                held.update(kept)

    push(gradients_back)
    push(hooks_back)
    if clear:
        for leaf, gradient, _ in gradients:
            if gradient is not None:
                leaf.grad = None
        for _, name, held, _ in hooks:
            if held and name == "_post_accumulate_grad_hooks":
                held.clear()


def free_gradients(tensors: Iterable[torch.Tensor]) -> None:
    """Drops the gradients that were made inside: their memory is free for what comes back."""
    for tensor in tensors:
        if tensor.is_leaf and not tensor.is_inference() and tensor.grad is not None:
            tensor.grad = None
