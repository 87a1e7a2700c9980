"""What a run taught the model, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmdoctor.plain_text import plain_line
from vlmdoctor.runs.numbers import number, percent

# Losses of fewer steps than this say how training starts, not what was learned.
SHORT_RUN = 100


@dataclass(frozen=True)
class LearningSummary:
    """What was learned.

    Attributes:
        headline: One line.
        sentences: The numbers behind it, one sentence each.
        looks: Whether the answers depend on the image; None where that was not measured.
    """

    headline: str
    sentences: tuple[str, ...] = ()
    looks: bool | None = None

    def __post_init__(self) -> None:
        """Names of kinds of questions come from a file: they are made plain here."""
        object.__setattr__(self, "headline", plain_line(self.headline))
        object.__setattr__(self, "sentences", tuple(plain_line(sentence) for sentence in self.sentences))


def verdict(
    summary: Mapping[str, Any],
    *,
    losses: Sequence[float] = (),
    steps: int = 0,
    total: int | None = None,
    finished: bool = True,
) -> LearningSummary:
    """The verdict on a run.

    Args:
        summary: `summary.json`: accuracy, accuracy_shuffled, loss, loss_shuffled, loss_blank, samples.
        losses: The training losses that were recorded.
        steps: How many steps were taken.
        total: How many were planned.
        finished: Whether the run came to its planned end.
    """
    looks = _looks(summary)
    headline = _headline(summary, looks, losses, steps)
    # Numbers of a handful of steps would only read like a judgement.
    sentences = list(_sentences(summary)) if steps >= SHORT_RUN else []
    if any(not math.isfinite(loss) for loss in losses):
        sentences.append("The training loss was not a number in some steps.")
    if total and not finished and steps < total:
        sentences.insert(0, f"Stopped after {steps:,} of {total:,} steps.")
    return LearningSummary(headline[:1].upper() + headline[1:], tuple(sentences), looks)


def _looks(summary: Mapping[str, Any]) -> bool | None:
    seen, blind = number(summary, "accuracy"), number(summary, "accuracy_shuffled")
    if seen is None or blind is None:
        return None
    # Three standard errors of a difference of shares, so that luck on a small test set is not called sight.
    samples = number(summary, "samples") or 0.0
    luck = 3 * math.sqrt(max(seen * (1 - seen) + blind * (1 - blind), 0.05) / samples) if samples > 0 else 0.1
    return seen - blind > max(luck, 0.03)


def _headline(summary: Mapping[str, Any], looks: bool | None, losses: Sequence[float], steps: int) -> str:
    seen, blind = number(summary, "accuracy"), number(summary, "accuracy_shuffled")
    if steps < SHORT_RUN:
        return f"{steps} step{'s' * (steps != 1)} taken{_fall(losses)}; too few to judge what it learned"
    if seen is None:
        return f"{steps:,} steps taken{_fall(losses)}; what it can answer was not measured"
    if blind is None:
        return f"{percent(seen)} of the answers are right; whether it looks at the image was not measured"
    numbers = f"{percent(seen)} right with the image, {percent(blind)} without"
    if not looks:
        return f"it does not look at the image: {numbers}"
    if seen >= 0.8:
        return f"it learned to look: {numbers}"
    return f"it began to look: {numbers}"


def _fall(losses: Sequence[float]) -> str:
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) < 2:
        return ""
    tail = finite[-max(len(finite) // 20, 1) :]
    return f", loss {finite[0]:.2f} to {sum(tail) / len(tail):.2f}"


def _sentences(summary: Mapping[str, Any]) -> Iterator[str]:
    seen, blind = number(summary, "accuracy"), number(summary, "accuracy_shuffled")
    samples = number(summary, "samples")
    if seen is not None:
        among = f" of {samples:,.0f} test questions" if samples else " of the test questions"
        kinds = [kind for kind in str(summary.get("accuracy_of") or "").split(", ") if kind]
        among += f" ({', '.join(kinds)})" if kinds else ""
        line = f"Answered {percent(seen)}{among} exactly right"
        if blind is not None:
            line += f", and {percent(blind)} when shown the wrong image"
        yield line + "."
        yield from _other_kinds(summary, kinds)
    real, shuffled, blank = (number(summary, f"loss{kind}") for kind in ("", "_shuffled", "_blank"))
    if real is not None and (shuffled is not None or blank is not None):
        parts = [f"{real:.3f} with the right image"]
        parts += [f"{shuffled:.3f} with another one"] if shuffled is not None else []
        parts += [f"{blank:.3f} with a blank one"] if blank is not None else []
        other = min(value for value in (shuffled, blank) if value is not None)
        line = "Test loss " + ", ".join(parts)
        if other - real > 0.05 * max(real, 0.2):
            yield f"{line}: the image carries part of the answer."
        else:
            yield f"{line}: the image makes no difference."


def _other_kinds(summary: Mapping[str, Any], counted: Sequence[str]) -> Iterator[str]:
    shares = {
        name.partition("/")[2]: number(summary, name) for name in summary if name.startswith("accuracy/")
    }
    others = [
        f"{kind} {percent(share)}"
        for kind, share in shares.items()
        if share is not None and kind not in counted
    ]
    if others and counted:
        yield f"Harder or other questions, not counted there: {', '.join(others)}."
