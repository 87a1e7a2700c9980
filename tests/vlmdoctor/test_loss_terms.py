"""What is seen of torch's loss functions while a model runs."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vlmdoctor
from vlmdoctor.engine import Gatherer
from vlmdoctor.evidence.loss_terms import LossTerms
from vlmdoctor.subject import Subject

CLASSES, LENGTH = 50, 12


class Bigram(nn.Module):
    """Logits [B, T, C] of the next token from the last one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(CLASSES, 16), nn.Linear(16, CLASSES)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.embed(input_ids))


def batch() -> dict[str, Tensor]:
    ids = torch.randint(0, CLASSES, (2, LENGTH + 1), generator=torch.Generator().manual_seed(1))
    targets = ids[:, 1:].clone()
    targets[:, :5] = -100
    return {"input_ids": ids[:, :-1], "targets": targets}


def heard(loss: Callable[[Tensor, Tensor], Tensor]) -> LossTerms:
    subject = Subject(
        Bigram(),
        batch=batch(),
        loss_fn=lambda model, batch: loss(model(batch["input_ids"]), batch["targets"]),
    )
    return Gatherer(subject)(LossTerms)


def found(loss: Callable[[Tensor, Tensor], Tensor]) -> list[str]:
    report = vlmdoctor.check(
        Bigram(),
        batch(),
        loss_fn=lambda model, batch: loss(model(batch["input_ids"]), batch["targets"]),
        select=["LOSS140", "LOSS141", "LOSS142", "LOSS371"],
    )
    assert report.crashed == ()
    return [finding.rule for finding in report.findings]


def test_a_call_is_described() -> None:
    terms = heard(lambda logits, targets: F.cross_entropy(logits.flatten(0, 1), targets.flatten()))
    (term,) = terms.terms
    assert (term.function, term.places, term.targets, term.classes) == ("cross_entropy", 24, 14, CLASSES)
    assert term.total == pytest.approx(terms.loss * 14, rel=1e-6)
    assert term.low < 0 < term.high
    assert not term.probabilities


def test_the_module_and_classes_in_the_second_dimension_are_seen_too() -> None:
    terms = heard(lambda logits, targets: nn.CrossEntropyLoss()(logits.transpose(1, 2), targets))
    assert [term.classes for term in terms.terms] == [CLASSES]
    assert [term.targets for term in terms.terms] == [14]


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, y: F.cross_entropy(logits.flatten(0, 1), y.flatten()),
        lambda logits, y: (
            F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / (y >= 0).sum()
        ),
        lambda logits, y: F.cross_entropy(logits.flatten(0, 1), y.flatten(), label_smoothing=0.1),
        lambda logits, y: F.cross_entropy(logits.log_softmax(-1).flatten(0, 1), y.flatten()),
        lambda logits, y: F.nll_loss(logits.log_softmax(-1).flatten(0, 1), y.flatten()),
        lambda logits, y: F.cross_entropy(0 * logits.flatten(0, 1), y.flatten()),
        lambda logits, y: (
            F.cross_entropy(logits.flatten(0, 1), y.flatten()) + 1e-3 * logits.logsumexp(-1).mean()
        ),
        lambda logits, y: F.cross_entropy(logits.flatten(0, 1), torch.ones(24, CLASSES) / CLASSES),
        lambda logits, y: (
            sum(F.cross_entropy(one, two, reduction="sum") for one, two in zip(logits, y, strict=True))
            / (y >= 0).sum()
        ),
    ],
    ids=[
        "mean",
        "summed and divided",
        "smoothed",
        "log-probabilities",
        "likelihood",
        "a head of zeros",
        "another term",
        "soft targets",
        "in pieces",
    ],
)
def test_right_losses_are_left_alone(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert found(loss) == []


@pytest.mark.parametrize(
    ("loss", "rule"),
    [
        (lambda x, y: F.cross_entropy(x.softmax(-1).flatten(0, 1), y.flatten()), "probabilities-as-logits"),
        (lambda x, y: F.cross_entropy(x.sigmoid().transpose(1, 2), y), "probabilities-as-logits"),
        (
            lambda x, y: F.binary_cross_entropy_with_logits(x.sigmoid(), torch.zeros_like(x)),
            "probabilities-as-logits",
        ),
        (lambda x, y: F.nll_loss(x.flatten(0, 1), y.flatten()), "nll-without-log"),
        (lambda x, y: F.nll_loss(x.softmax(-1).flatten(0, 1), y.flatten()), "nll-without-log"),
        (lambda x, y: F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="sum"), "loss-summed"),
        (
            lambda x, y: F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="none").mean(),
            "masked-tokens-in-mean",
        ),
        (
            lambda x, y: sum(F.cross_entropy(a, b, reduction="sum") for a, b in zip(x, y, strict=True)),
            "loss-summed",
        ),
    ],
)
def test_wrong_losses_are_told(loss: Callable[[Tensor, Tensor], Tensor], rule: str) -> None:
    assert found(loss) == [rule]


def test_the_least_loss_that_is_left_is_what_it_says() -> None:
    """With probabilities for logits even a model that is sure and right has that loss."""
    right = torch.eye(CLASSES)
    least = F.cross_entropy(right, torch.arange(CLASSES))
    (finding,) = vlmdoctor.check(
        Bigram(),
        batch(),
        loss_fn=lambda model, batch: F.cross_entropy(
            model(batch["input_ids"]).softmax(-1).flatten(0, 1), batch["targets"].flatten()
        ),
        select=["probabilities-as-logits"],
    ).findings
    assert finding.threshold["lowest_possible_loss"] == pytest.approx(float(least), rel=1e-5)
    assert finding.threshold["loss_of_guessing"] == pytest.approx(math.log(CLASSES))
