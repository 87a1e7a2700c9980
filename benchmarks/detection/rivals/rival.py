"""What the benchmark has to know of another tool, and how its answers are judged."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.detection.case import Case
from benchmarks.detection.score import accepts
from vlmdoctor.sandbox.call import call, loss_in
from vlmdoctor.subject import Subject

NAMES = ("torchtest2", "guardtower", "torch_audit", "preflight_ml")
LEFT_OUT = {
    "trainproof 0.22": "it reads the logs of a run, text for a tokenizer, or audio; no case has any of them",
    "trainsight-preflight 0.2": "it reads conversations in ChatML with a tokenizer from the hub, and calls "
    "every prompt without ChatML's tokens a mismatch; the batches here are token ids of small models",
    "traincheck 0.2": "it learns invariants from a traced run of a script known to be good, and compares a "
    "traced run of the script in question; a case here is one model, with no script and no earlier run",
}

# What an exception says that the model or the loss raised, whichever tool passes it on.
RAISED = (
    (r"", "forward-raises"),
    (r"image (features|tokens)|tokens: \d+, features", "image-token-count"),
    (r"index out of range", "token-out-of-table"),
    (r"[Tt]arget -?\d+ is out of bounds", "label-out-of-range"),
    (r"\bdtype|type [\w.]*float", "dtype-mismatch"),
)


@dataclass(frozen=True)
class Said:
    """One alarm of a tool.

    Attributes:
        check: The tool's name of its check.
        severity: `error` or `warning`: whether it calls the check failed or suspicious.
        message: The tool's words.
    """

    check: str
    severity: str
    message: str


@dataclass(frozen=True)
class Rival:
    """Another tool.

    Attributes:
        name: The name of its package.
        requirement: What pip installs.
        used: How it is used here, for the documentation.
        examine: Runs it; only in its own environment.
        causes: (check, pattern of its message, rules of vlmdoctor that name the same cause; an area's
            prefix such as PARAM where vlmdoctor has no such rule).
    """

    name: str
    requirement: str
    used: str
    examine: Callable[[Subject], Iterable[Said]]
    causes: tuple[tuple[str, str, str], ...]

    def names(self, said: Said) -> list[str]:
        """The rules of vlmdoctor that name what an alarm names."""
        return [
            rule
            for check, pattern, rules in self.causes
            if check == said.check and re.search(pattern, said.message, re.IGNORECASE | re.DOTALL)
            for rule in rules.split()
        ]


@functools.cache
def rival(name: str) -> Rival:
    """The tool whose file under rivals/ has this name."""
    module = importlib.import_module(f"benchmarks.detection.rivals.{name}")
    return Rival(module.NAME, module.REQUIREMENT, module.USED, module.examine, module.CAUSES)


def raised(check: str, pattern: str = "") -> tuple[tuple[str, str, str], ...]:
    """`causes` of a check that passes on what the model raised, in messages that fit `pattern`."""
    return tuple((check, f"{pattern}.*{text}" if pattern else text, rules) for text, rules in RAISED)


def is_right(case: Case, rules: Iterable[str]) -> bool:
    """Whether one of these rules names the cause of the fault, by the measure for vlmdoctor itself."""
    return any(accepts(case, {"rule": rule, "code": _code(rule)}) for rule in rules)


@functools.cache
def _code(rule: str) -> str:
    from vlmdoctor.rulebook import find_rule

    return rule if rule.isupper() else find_rule(rule).code


def joined(inputs: Any, labels: Any) -> Any:
    """The batch again, of what `apart` took apart."""
    return inputs if labels is None else {**inputs, "labels": labels}


def apart(batch: Any) -> tuple[Any, Any]:
    """The batch without its labels, and the labels."""
    if not isinstance(batch, dict) or "labels" not in batch:
        return batch, None
    return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]


def loss_of(subject: Subject) -> Any:
    """The loss, as the training script would make it."""
    if subject.loss_fn is not None:
        return subject.loss_fn(subject.model, subject.batch)
    return loss_in(call(subject.model, subject.batch))


def optimizer_of(subject: Subject) -> Any:
    """The optimizer; the first where there are several, since none of the tools takes more."""
    given = subject.optimizer
    return given[0] if isinstance(given, list | tuple) else given


def meant_frozen(subject: Subject) -> list[str]:
    """The parameters that are not among those declared as meant to learn."""
    from vlmdoctor.knowledge.parameter_names import canonical_name
    from vlmdoctor.subject import compile_patterns

    if not subject.trainable:
        return []
    patterns = compile_patterns(subject.trainable).values()
    return [
        name
        for name, _ in subject.model.named_parameters()
        if not any(pattern.search(canonical_name(name)) for pattern in patterns)
    ]
