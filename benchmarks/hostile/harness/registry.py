"""The classes of inputs: every module beside this package that has a NAME and `inputs(seed, count)`.

A module may have, besides:

    WEIGHT = 2                          its share of all inputs, where 1 is usual
    def judge(trial, outcome): ...      yields further faults
    FORGIVEN = ("read",)                kinds of faults of the common judge that are none in this class

What has no NAME and `inputs`, such as a trial of its own with a `main()`, is not imported.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hostile.harness import judge as common
from benchmarks.hostile.harness.outcome import Outcome
from benchmarks.hostile.harness.trial import Trial

PACKAGE = "benchmarks.hostile"
Judge = Callable[[Trial, Outcome], Iterable[str]]


@dataclass(frozen=True)
class InputClass:
    """A class of inputs."""

    name: str
    inputs: Callable[[int, int], Iterator[Trial]]
    weight: float
    own_judge: Judge | None
    forgiven: tuple[str, ...]

    def faults(self, trial: Trial, outcome: Outcome) -> list[str]:
        """What is wrong with an outcome of this class."""
        found = [f for f in common.faults(trial, outcome) if common.kind(f) not in self.forgiven]
        return found + list(self.own_judge(trial, outcome) if self.own_judge else ())


def classes() -> dict[str, InputClass]:
    """All classes by name, in the order of their names."""
    found = {}
    for path in sorted(Path(__file__).parent.parent.glob("*.py")):
        if not _has_inputs(path):
            continue
        module = importlib.import_module(f"{PACKAGE}.{path.stem}")
        found[module.NAME] = InputClass(
            module.NAME,
            module.inputs,
            getattr(module, "WEIGHT", 1),
            getattr(module, "judge", None),
            tuple(getattr(module, "FORGIVEN", ())),
        )
    return found


def _has_inputs(path: Path) -> bool:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    functions = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    targets = [target for node in body if isinstance(node, ast.Assign) for target in node.targets]
    targets += [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return "inputs" in functions and any(isinstance(t, ast.Name) and t.id == "NAME" for t in targets)


def shares(chosen: Iterable[InputClass], total: int) -> dict[str, int]:
    """How many inputs each class gets of `total`, by weight; none gets fewer than one."""
    chosen = list(chosen)
    weights = sum(one.weight for one in chosen)
    return {one.name: max(1, round(total * one.weight / weights)) for one in chosen}
