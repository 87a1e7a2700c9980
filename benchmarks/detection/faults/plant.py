"""How a fault is described and planted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from benchmarks.detection.case import Case, Made
from benchmarks.detection.models import make
from vlmdoctor.subject import Subject

Plant = Callable[[Made], None]
STRANGERS = "nanogpt_images captioner hf_wrapper"  # hand-written, with names and losses of their own


@dataclass(frozen=True)
class Fault:
    """One fault; see `Case` for `rules` and `at`.

    Attributes:
        name: The catalogue's id (X where it is in none) and a few words.
        planted: How, in one line.
        plant: Puts it into a healthy model, its batch, or what belongs to them.
        families: Those that it is planted in.
        rules: The rules that name the right cause.
        at: Where it is: texts, or `part:` followed by the name of a part.
        changes: Changes to the configuration of transformers models.
    """

    name: str
    planted: str
    plant: Plant
    families: tuple[str, ...]
    rules: tuple[str, ...]
    at: tuple[str, ...]
    changes: dict[str, Any]

    def cases(self) -> list[Case]:
        """One case for each family."""
        return [self._case(family) for family in self.families]

    def _case(self, family: str) -> Case:
        def build() -> Subject:
            made = make(family, **self.changes)
            self.plant(made)
            return made.subject()

        from benchmarks.detection.models import PARTS

        parts = PARTS.get(family, {})
        at = tuple(parts.get(place[5:], place) if place.startswith("part:") else place for place in self.at)
        return Case(f"{self.name}/{family}", family, build, self.name, self.planted, self.rules, at)


FAULTS: list[Fault] = []


def fault(
    name: str,
    *,
    families: str,
    rules: str,
    at: str = "",
    **changes: Any,
) -> Callable[[Plant], Plant]:
    """Registers a function that plants a fault; its docstring says how. Lists are separated by blanks."""

    def register(plant: Plant) -> Plant:
        planted = (plant.__doc__ or "").strip().splitlines()[0].rstrip(".")
        planted = planted[:1].lower() + planted[1:]
        FAULTS.append(
            Fault(
                name,
                planted,
                plant,
                tuple(families.split()),
                tuple(rules.split()),
                tuple(at.split()),
                changes,
            )
        )
        return plant

    return register


def graft(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Lets `module` run `forward(original, *args, **kwargs)`; a copy of the module keeps it."""
    kind = type(module)

    @functools.wraps(kind.forward)
    def grafted(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return forward(lambda *a, **k: kind.forward(self, *a, **k), *args, **kwargs)

    module.__class__ = type(kind.__name__, (kind,), {"forward": grafted})


def altered(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A module's output with its features changed: a tensor, a tuple, or an output class."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, tuple):
        return (change(output[0]), *output[1:])
    for name in ("pooler_output", "last_hidden_state"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            output[name] = change(value)
    return output


def alter(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Changes what `module` puts out."""
    graft(module, lambda original, *args, **kwargs: altered(original(*args, **kwargs), change))
