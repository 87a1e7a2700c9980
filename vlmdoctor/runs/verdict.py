"""What a model learned in a run, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmdoctor.knowledge.run_length import LONG, NEARLY_DONE
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
        uses_images: Whether the answers depend on the image; None where that was not measured.
    """

    headline: str
    sentences: tuple[str, ...] = ()
    uses_images: bool | None = None

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
    seen = uses_images(summary)
    headline = _headline(summary, seen, losses, steps, total)
    # Numbers of a handful of steps would only read like a judgement.
    sentences = list(_sentences(summary)) if steps >= SHORT_RUN else []
    if any(not math.isfinite(loss) for loss in losses):
        sentences.append("The training loss was not a number in some steps.")
    if total and not finished and steps < total:
        sentences.insert(0, f"Stopped after {steps:,} of {total:,} steps.")
    return LearningSummary(headline[:1].upper() + headline[1:], tuple(sentences), seen)


def too_early(steps: int, total: int | None) -> str | None:
    """`150 of 500 steps`, where it is too early to judge the use of images; else None."""
    wanted = max(total or 0, LONG)
    return f"{steps:,} of {wanted:,} steps" if steps < NEARLY_DONE * wanted else None


def uses_images(summary: Mapping[str, Any]) -> bool | None:
    """Whether it answers better with the right images than without them; None where that was not measured.

    By the accuracy with shuffled images, or by a loss that is clearly higher without the right ones.
    """
    accuracy, shuffled_accuracy = number(summary, "accuracy"), number(summary, "accuracy_shuffled")
    if accuracy is None or shuffled_accuracy is None:
        return None
    if _loss_gap(summary):
        return True
    # Three standard errors of a difference of shares, so that luck on a small test set does not count.
    samples = number(summary, "samples") or 0.0
    variance = accuracy * (1 - accuracy) + shuffled_accuracy * (1 - shuffled_accuracy)
    luck = 3 * math.sqrt(max(variance, 0.05) / samples) if samples > 0 else 0.1
    return accuracy - shuffled_accuracy > max(luck, 0.03)


def _loss_gap(summary: Mapping[str, Any]) -> bool:
    """Whether the loss is clearly higher without the right images; blank ones disturb least."""
    real = number(summary, "loss")
    others = [number(summary, f"loss{kind}") for kind in ("_shuffled", "_blank")]
    known = [other for other in others if other is not None]
    return real is not None and bool(known) and min(known) - real > 0.05 * max(real, 0.2)


def _headline(
    summary: Mapping[str, Any],
    seen: bool | None,
    losses: Sequence[float],
    steps: int,
    total: int | None,
) -> str:
    accuracy, shuffled_accuracy = number(summary, "accuracy"), number(summary, "accuracy_shuffled")
    if steps < SHORT_RUN:
        return f"{steps} step{'s' * (steps != 1)} taken{_fall(losses)}; too few to judge what it learned"
    if accuracy is None:
        return f"{steps:,} steps taken{_fall(losses)}; the accuracy was not measured"
    if shuffled_accuracy is None:
        return f"{percent(accuracy)} accuracy; whether it uses its images was not measured"
    numbers = f"{percent(accuracy)} accuracy, {percent(shuffled_accuracy)} with shuffled images"
    if not seen and (early := too_early(steps, total)):
        return f"too early to tell whether it uses its images ({early}): {numbers}"
    if not seen:
        return f"it does not use its images: {numbers}"
    if accuracy >= 0.8:
        return f"it uses its images: {numbers}"
    return f"it begins to use its images: {numbers}"


def _fall(losses: Sequence[float]) -> str:
    finite = [loss for loss in losses if math.isfinite(loss)]
    if len(finite) < 2:
        return ""
    tail = finite[-max(len(finite) // 20, 1) :]
    return f", loss {finite[0]:.2f} to {sum(tail) / len(tail):.2f}"


def _sentences(summary: Mapping[str, Any]) -> Iterator[str]:
    accuracy, shuffled_accuracy = number(summary, "accuracy"), number(summary, "accuracy_shuffled")
    samples = number(summary, "samples")
    if accuracy is not None:
        among = f" of {samples:,.0f} test questions" if samples else " of the test questions"
        kinds = [kind for kind in str(summary.get("accuracy_of") or "").split(", ") if kind]
        among += f" ({', '.join(kinds)})" if kinds else ""
        line = f"Answered {percent(accuracy)}{among} exactly right"
        if shuffled_accuracy is not None:
            line += f", and {percent(shuffled_accuracy)} with shuffled images"
        yield line + "."
        yield from _other_kinds(summary, kinds)
    real, shuffled, blank = (number(summary, f"loss{kind}") for kind in ("", "_shuffled", "_blank"))
    if real is not None and (shuffled is not None or blank is not None):
        parts = [f"{real:.3f} with the right images"]
        parts += [f"{shuffled:.3f} with shuffled images"] if shuffled is not None else []
        parts += [f"{blank:.3f} with blank ones"] if blank is not None else []
        line = "Test loss " + ", ".join(parts)
        if _loss_gap(summary):
            yield f"{line}: the images carry part of the answer."
        else:
            yield f"{line}: the images make no difference."


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
        yield f"Other questions, not counted there: {', '.join(others)}."
