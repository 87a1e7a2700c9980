"""From what moves each module to what it is: vision tower, projector, language model, head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from vlmdoctor.knowledge.parameter_names import canonical_name, layer_of, role_of
from vlmdoctor.probes.model.wiring_calls import Call

Moved = Mapping[str, tuple[bool, bool]]  # with the images, with the text


def roles_by_flow(
    model: nn.Module,
    calls: Sequence[Call],
    moved: Moved,
    pixels: Sequence[tuple[int, ...]],
    head: str | None,
) -> tuple[tuple[str, str], ...]:
    """(module, role) where the names don't say it, or say otherwise of what only the images move."""
    order = {call.name: place for place, call in reversed(list(enumerate(calls)))}
    given_pixels = {call.name for call in calls if any(shape in pixels for shape in call.shapes)}
    parts = list(_parts(model, "", moved, given_pixels))
    seeing = sorted((name for name, kind in parts if kind == "image"), key=lambda n: _first(n, order))
    found = dict(_eyes(model, seeing))
    for name, kind in parts:
        if kind in ("text", "both") and role_of(name) == "other" and name != head:
            found[name] = "language"
    if head is not None and role_of(head) not in ("head", "language"):
        found = {head: "head"} | found
    return tuple(found.items())


def _eyes(model: nn.Module, seeing: list[str]) -> Iterator[tuple[str, str]]:
    """The modules on the path of the images: the last with a matrix is the projector, unless one is named."""
    named = [name for name in seeing if _holds(model, name, "projector")]
    bridge: list[str] = []
    if not named and len(seeing) > 1:
        last = max((i for i, name in enumerate(seeing) if _has_matrix(model, name)), default=0)
        bridge = seeing[last:] if last else []
    for name in seeing:
        if name in bridge:
            yield name, "projector"
        elif name not in named and role_of(name) != "vision":
            yield name, "vision"


def _parts(module: nn.Module, prefix: str, moved: Moved, given_pixels: set[str]) -> Iterator[tuple[str, str]]:
    """(name, `image`, `text` or `both`) of the outermost modules of one kind."""
    for child_name, child in module.named_children():
        raw = f"{prefix}{child_name}"
        name = canonical_name(f"{raw}.").rstrip(".")
        if not any(True for _ in child.parameters()):
            continue
        kind = _kind(name, moved)
        # What is given the pixels and the text is a wrapper; what is given features and text is the decoder.
        wraps = name not in moved or name in given_pixels
        if kind == "both" and wraps and layer_of(name)[0] != name and any(True for _ in child.children()):
            inner = list(_parts(child, f"{raw}.", moved, given_pixels))
            # A list of blocks is one part, and is named as one.
            listed = name not in moved and {own for _, own in inner} == {"both"}
            yield from [(name, "both")] if listed else inner
        elif kind is not None:
            yield name, kind


def _kind(name: str, moved: Moved) -> str | None:
    if name in moved:
        ways = {moved[name]}
    else:
        ways = {way for other, way in moved.items() if other.startswith(f"{name}.")}
    images, text = any(way[0] for way in ways), any(way[1] for way in ways)
    return "both" if images and text else "image" if images else "text" if text else None


def _holds(model: nn.Module, name: str, role: str) -> bool:
    return any(
        role_of(own) == role
        for raw, _ in model.named_parameters()
        if (own := canonical_name(raw)).startswith(f"{name}.")
    )


def _has_matrix(model: nn.Module, name: str) -> bool:
    return any(
        parameter.ndim > 1
        for raw, parameter in model.named_parameters()
        if canonical_name(raw).startswith(f"{name}.")
    )


def _first(name: str, order: Mapping[str, int]) -> int:
    return min(
        (place for own, place in order.items() if own == name or own.startswith(f"{name}.")), default=0
    )
