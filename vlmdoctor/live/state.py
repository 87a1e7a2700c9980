"""What is known of a run so far: bounded in memory, cheap to update, read by the view."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmdoctor.finding import Finding

KEPT = 256


class Curve:
    """A whole run of values in at most `KEPT` averages: neighbours are merged as it grows.

    >>> history = History()
    >>> for value in range(1000):
    ...     history.add(value)
    >>> len(history.values) <= KEPT
    True
    """

    def __init__(self) -> None:
        self.values: list[float] = []
        self.last: float | None = None
        self._per_value = 1
        self._sum = 0.0
        self._count = 0

    def add(self, value: float | None) -> None:
        """Adds a value; None is passed over."""
        if value is None:
            return
        self.last = value
        self._sum += value
        self._count += 1
        if self._count < self._per_value:
            return
        self.values.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self.values) >= KEPT:
            pairs = zip(self.values[::2], self.values[1::2], strict=True)
            self.values = [(one + two) / 2 for one, two in pairs]
            self._per_value *= 2


@dataclass
class Part:
    """One role of the model: how big, whether it is meant to learn, and its curves."""

    role: str
    parameters: int = 0
    trainable: int = 0
    norm: Curve = field(default_factory=Curve)
    ratio: Curve = field(default_factory=Curve)

    @property
    def state(self) -> str:
        """`trainable`, `frozen` or `partly trainable`."""
        if self.trainable == self.parameters:
            return "trainable"
        return "partly trainable" if self.trainable else "frozen"


@dataclass(frozen=True)
class Noticed:
    """A finding while the run goes on; `gone` is the step at which it no longer held."""

    finding: Finding
    gone: int | None = None


class LiveState:
    """Everything that the live view and the plain lines show.

    The training thread writes and the drawing thread reads, without a lock: each write is one assignment or
    one append, so a reader sees the run as it was a moment ago at worst.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.title = ""
        self.place = ""
        self.phase = "starting"
        self.eval_every = 0
        self.log_every = 1
        self.total_steps: int | None = None
        self.first_step: int | None = None
        self.step: int | None = None
        self.epoch: int | None = None
        self.clip: float | None = None
        self.watched = False
        self.parts: dict[str, Part] = {}
        self.layers: dict[str, float] = {}
        self.sampled_step: int | None = None
        self.loss = Curve()
        self.norm = Curve()
        self.lr: float | None = None
        self.tokens_per_s: float | None = None
        self.memory_mb: float | None = None
        self.mfu: float | None = None
        self.evaluation: Mapping[str, Any] = {}
        self.accuracies = Curve()
        self.noticed: dict[str, Noticed] = {}
        self._started = clock()
        self._first_seen: float | None = None
        self._last_seen: float | None = None

    def describe(self, parameters: Iterable[Any]) -> None:
        """Takes the model's parameters (`evidence.parameters.Parameter`)."""
        parts: dict[str, Part] = {}
        for parameter in parameters:
            part = parts.setdefault(parameter.role, Part(parameter.role))
            part.parameters += parameter.numel
            part.trainable += parameter.numel if parameter.requires_grad else 0
        self.parts = parts

    def log(self, row: Mapping[str, Any]) -> None:
        """Takes one optimizer step: the trainer's record, or the recorder's row with the gradients in it."""
        step = row.get("step")
        if isinstance(step, int):
            self.step = step
            self._last_seen = self.clock()
            if self.first_step is None:
                self.first_step, self._first_seen = step, self._last_seen
        self.phase = "training"
        self.loss.add(_number(row.get("loss")))
        self.norm.add(_number(row.get("grad_norm")))
        self.epoch = row.get("epoch", self.epoch)
        self.lr = _or(row.get("lr"), self.lr)
        self.tokens_per_s = _or(row.get("tokens_per_s"), self.tokens_per_s)
        self.memory_mb = _or(row.get("memory_mb"), self.memory_mb)
        self.mfu = _or(row.get("mfu"), self.mfu)

    def sample(self, row: Mapping[str, Any]) -> None:
        """Takes what the watcher measured at a step: norms by role and layer, update ratios."""
        layers = {}
        for name, value in row.items():
            kind, _, what = name.partition("/")
            if kind == "grad_norm" and what.startswith("layer/"):
                layers[what.removeprefix("layer/")] = value
            elif kind == "grad_norm" and what:
                self.parts.setdefault(what, Part(what)).norm.add(_number(value))
            elif kind == "update_ratio" and what:
                self.parts.setdefault(what, Part(what)).ratio.add(_number(value))
        if layers:
            self.layers = layers
        if any(name.startswith("grad_norm/") for name in row):
            self.sampled_step = row.get("step")
            self.watched = True

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """Takes an evaluation."""
        self.evaluation = dict(record)
        self.accuracies.add(_number(record.get("accuracy")))
        self.phase = "training"

    def arose(self, finding: Finding) -> bool:
        """Takes a finding that has just arisen; False where it is known already."""
        known = self.noticed.get(finding.rule)
        self.noticed = {**self.noticed, finding.rule: Noticed(finding)}
        return known is None or known.gone is not None

    def judged(self, findings: Iterable[Finding]) -> tuple[list[Finding], list[Finding]]:
        """Takes what the rules say now; gives back the new findings, and those that no longer hold."""
        now = {finding.rule: finding for finding in findings}
        explained = {symptom for finding in now.values() for symptom in finding.symptoms}
        new = [
            f for rule, f in now.items() if rule not in self.noticed or self.noticed[rule].gone is not None
        ]
        gone = {
            rule: Noticed(noticed.finding, noticed.gone if noticed.gone is not None else self.step)
            for rule, noticed in self.noticed.items()
            if rule not in now and noticed.finding.message not in explained
        }
        over = [n.finding for rule, n in gone.items() if self.noticed[rule].gone is None]
        self.noticed = gone | {rule: Noticed(finding) for rule, finding in now.items()}
        return new, over

    @property
    def done(self) -> float:
        """The share of the planned steps that is behind us, 0 to 1."""
        if self.step is None or not self.total_steps:
            return 0.0
        return min((self.step + 1) / self.total_steps, 1.0)

    @property
    def activity(self) -> str:
        """What goes on: nobody tells that an evaluation has begun, but the silence does where one is due."""
        if self.phase != "training" or self._last_seen is None or self.step is None or not self.eval_every:
            return self.phase
        taken = self.step - (self.first_step or 0)
        pace = (self._last_seen - (self._first_seen or 0.0)) / taken if taken else 0.0
        silent = self.clock() - self._last_seen > max(3 * pace * self.log_every, 0.5)
        due = (self.step + 1) % self.eval_every > (self.step + 1 + self.log_every) % self.eval_every
        return "evaluating" if silent and (due or (self.step + 1) % self.eval_every == 0) else self.phase

    @property
    def seconds(self) -> float:
        """Since the view came up."""
        return self.clock() - self._started

    @property
    def seconds_left(self) -> float | None:
        """At the pace so far; None while that is not known."""
        if self.step is None or self.first_step is None or not self.total_steps:
            return None
        taken = self.step - self.first_step
        if taken < 3 or self._first_seen is None or self._last_seen is None:
            return None
        pace = (self._last_seen - self._first_seen) / taken
        return max(pace * (self.total_steps - self.step - 1) - (self.clock() - self._last_seen), 0.0)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def _or(value: Any, fallback: float | None) -> float | None:
    number = _number(value)
    return fallback if number is None or math.isnan(number) else number
