"""How findings name places: many parameters as the few modules that hold them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from vlmdoctor.evidence.parameters import Parameter

MOST_PLACES = 8


def places(chosen: Iterable[str], among: Iterable[str] = ()) -> tuple[str, ...]:
    """The highest modules all of whose parameters are chosen, as `model.vision_proj (2 tensors)`.

    Args:
        chosen: Names of parameters.
        among: Names of all parameters that might have been chosen, so that a module is named only where
            the finding is true of everything in it.

    >>> places(["a.proj.weight", "a.proj.bias"], ["a.proj.weight", "a.proj.bias", "a.norm.weight"])
    ('a.proj (2 tensors)',)
    """
    chosen = list(dict.fromkeys(chosen))
    everything = set(among) | set(chosen)
    inside, total = Counter[str](), Counter[str]()
    for counter, names in ((inside, chosen), (total, everything)):
        for name in names:
            counter.update(_modules_above(name))
    found: dict[str, int] = {}
    for name in chosen:
        whole = next((m for m in _modules_above(name) if inside[m] == total[m] > 1), name)
        found[whole] = found.get(whole, 0) + 1
    named = [
        place if count == 1 else f"{place or 'the whole model'} ({count} tensors)"
        for place, count in found.items()
    ]
    if len(named) > MOST_PLACES:
        named = [*named[: MOST_PLACES - 1], f"and {len(named) - MOST_PLACES + 1} more"]
    return tuple(named)


def shared_parts(names: Iterable[str]) -> list[str]:
    """The dotted parts of the innermost module that all of these parameters sit in.

    >>> shared_parts(["visual.blocks.0.weight", "visual.merger.bias"])
    ['visual']
    """
    above = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*above, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared


def module_of(names: Iterable[str]) -> str:
    """The module that all of these parameters sit in, as code that gets it; `model` where that is the model.

    >>> module_of(["visual.blocks.0.weight", "visual.merger.bias"])
    'model.visual'
    """
    shared = shared_parts(names)
    if all(part.isidentifier() for part in shared):
        return ".".join(("model", *shared))
    return f'model.get_submodule("{".".join(shared)}")'


def _modules_above(name: str) -> list[str]:
    """The modules that a parameter sits in, outermost first: the model itself is ''."""
    parts = name.split(".")[:-1]
    return [".".join(parts[:length]) for length in range(len(parts) + 1)]


def share_of(part: Iterable[Parameter], whole: Iterable[Parameter]) -> float:
    """How much of `whole` is in `part`, 0 to 1; counts tensors where sharding left them without numbers."""
    inside, everything = list(part), list(whole)
    total = sum(p.numel for p in everything)
    if total:
        return sum(p.numel for p in inside) / total
    return len(inside) / len(everything) if everything else 0.0


def listed(words: Iterable[str]) -> str:
    """Words as running text: `vision, projector and head`."""
    words = list(words)
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]


def counted(number: int, thing: str) -> str:
    """`1 tensor`, `2 tensors`."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")
