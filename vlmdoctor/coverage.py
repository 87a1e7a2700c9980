"""The central questions about a set-up, which of them were answered, and what to hand in for the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vlmdoctor.evidence.backward import Backward
from vlmdoctor.evidence.data import Data
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.plain_text import plain_line

# A reason that is longer than this stands in the long list only.
SHORT = 40


@dataclass(frozen=True)
class Coverage:
    """One central question, and whether it was answered.

    Attributes:
        topic: A few words for it, such as `label masking`.
        question: The question, such as `are prompts masked in the labels?`.
        answered: Whether a judgement was possible.
        reason: Why not, in a few words; empty where it was.
        needs: What to hand in for an answer; empty where it was answered.
    """

    topic: str
    question: str
    answered: bool
    reason: str = ""
    needs: str = ""

    def __post_init__(self) -> None:
        for name in ("topic", "question", "reason", "needs"):
            object.__setattr__(self, name, plain_line(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """The question as JSON-ready plain values."""
        return vars(self).copy()


@dataclass(frozen=True)
class _Asked:
    topic: str
    question: str
    # Any of these rules answers it.
    rules: tuple[str, ...]
    # What answers it, where the reason for skipping the rules does not say so.
    needs: str
    about_images: bool = False


ALIGNED = ("labels-not-shifted", "labels-shifted-twice")
PADDING = ("padding-moves-logits", "hidden-tokens-seen", "left-padding-seen")
LOADED = ("checkpoint-not-loaded",)
IMAGES = "a batch with images"
LABELS = "a batch with labels"
PADDED = "a batch with rows of different lengths and an attention_mask"
QUESTIONS = (
    _Asked("image use", "does it see its images?", ("image-without-effect",), IMAGES, about_images=True),
    _Asked("pixel scale", "are the pixels scaled as the model expects?", ("pixel-range",), "processor", True),
    _Asked("label alignment", "is each prediction compared with the next token?", ALIGNED, LABELS),
    _Asked("label masking", "are prompts masked in the labels?", ("prompt-supervised",), "tokenizer"),
    _Asked("padding", "is padding ignored?", PADDING, PADDED),
    _Asked("loaded weights", "do the weights come from the checkpoint?", LOADED, "checkpoint"),
    _Asked("learning parts", "does every part learn?", ("no-gradient",), LABELS),
)
# What a skipped rule says -> (in a few words, what to hand in).
REASONS = {
    "no batch was given": ("no batch", "a batch"),
    "no tokenizer was given": ("no tokenizer", "tokenizer"),
    "no checkpoint was given": ("no checkpoint", "checkpoint"),
    "no chat template was given": ("no chat template", "a tokenizer with a chat template"),
    "the batch has no padding mask over its token ids": ("no padded row", ""),
    "the batch has no labels": ("no labels", "a batch with labels"),
}


def coverage(
    selected: Iterable[str],
    ran: Iterable[str],
    skipped: Iterable[tuple[str, str]],
    gathered: Mapping[type, object],
    found: Iterable[str] = (),
) -> tuple[Coverage, ...]:
    """Which of the central questions were answered by an examination of a model.

    Args:
        selected: The names of the rules that were to run; what none of them answers was not asked.
        ran: The names of those that gave a judgement.
        skipped: (rule, reason) of those that could not.
        gathered: The evidence, by class.
        found: The names of the rules that found something: that is an answer.
    """
    found = set(found)
    selected, ran, reasons = set(selected), set(ran), dict(skipped)
    with_images = _has_images(gathered)
    answers = []
    for asked in QUESTIONS:
        if not selected & set(asked.rules) or (asked.about_images and not with_images):
            continue
        why = None if ran & set(asked.rules) else _why(asked, reasons)
        if why is None and not found & set(asked.rules):
            why = _unseen(asked.topic, gathered)
        reason, needs = why or ("", "")
        answers.append(Coverage(asked.topic, asked.question, why is None, reason, needs))
    return tuple(answers)


def _why(asked: _Asked, reasons: Mapping[str, str]) -> tuple[str, str]:
    """(in a few words, what to hand in) for a question that no rule answered."""
    reason = next((reasons[name] for name in asked.rules if name in reasons), "")
    if reason.startswith("needs --depth"):
        return reason, reason.removeprefix("needs ")
    short, needs = REASONS.get(reason, (reason if len(reason) <= SHORT else "", ""))
    return short, needs or asked.needs


def _unseen(topic: str, gathered: Mapping[type, object]) -> tuple[str, str] | None:
    """Why a rule that ran could not see what the question is about; None where it could."""
    data, parameters = gathered.get(Data), gathered.get(Parameters)
    if topic == "pixel scale" and isinstance(data, Data):
        scaled = all(picture.restored_high is not None for picture in data.pictures)
        return None if scaled else ("no processor", "processor")
    if topic == "learning parts" and isinstance(parameters, Parameters) and Backward in gathered:
        held = any(parameter.in_optimizer is not None for parameter in parameters.parameters)
        return None if held else ("no optimizer", "optimizer")
    return None


def _has_images(gathered: Mapping[type, object]) -> bool:
    data, parameters = gathered.get(Data), gathered.get(Parameters)
    if isinstance(data, Data) and data.pictures:
        return True
    return isinstance(parameters, Parameters) and any(p.role == "vision" for p in parameters.parameters)
