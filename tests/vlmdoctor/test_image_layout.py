"""Pixels in the wrong order, told from how smooth pictures are; words and auxiliary losses without effect."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vlmdoctor
from benchmarks.detection.corpus import by_name
from benchmarks.detection.faults.landing import smooth
from benchmarks.detection.models import make

RULES = ["IMG347", "IMG348", "LOSS380", "MASK181"]
FAULTS = [
    "X-pixels-viewed-not-transposed/llava",
    "X-pixels-viewed-not-transposed/llava_scratch",
    "X-grid-exchanged/qwen2_5_vl",
]
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def checked(subject: Any, **more: Any) -> Any:
    torch.manual_seed(0)
    report = vlmdoctor.check(subject, select=RULES, **more)
    assert report.crashed == ()
    return report


@pytest.mark.parametrize("name", FAULTS)
def test_found(name: str) -> None:
    case = by_name()[name]
    assert [finding.rule for finding in checked(case.make()).findings] == list(case.rules)


@pytest.mark.parametrize("name", ["minivlm/tiny", "vlm/qwen2_vl", "vlm/llava_next", "handwritten/clip"])
def test_pictures_and_noise_are_left_alone(name: str) -> None:
    assert checked(by_name()[name].make()).findings == ()


def test_smooth_pictures_in_their_order_are_left_alone() -> None:
    made = make("llava")
    made.batch["pixel_values"] = smooth(2, 3, 32, 32)
    assert checked(made.subject()).findings == ()
    grey = smooth(2, 1, 32, 32).expand(-1, 3, -1, -1)
    made.batch["pixel_values"] = grey
    assert checked(made.subject()).findings == ()
    made.batch["pixel_values"] = grey.permute(0, 2, 3, 1).reshape(2, 3, 32, 32)
    assert [finding.rule for finding in checked(made.subject()).findings] == ["pixels-not-transposed"]


def test_one_picture_in_order_is_enough_to_stay_silent() -> None:
    subject = by_name()["X-pixels-viewed-not-transposed/llava"].make()
    subject.batch["pixel_values"][1] = smooth(1, 3, 32, 32)[0]
    assert checked(subject).findings == ()


class Contrastive(nn.Module):
    """Image and text features side by side; the text is a recurrent, so causal, encoder's at one place."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.visual, self.token_embedding = nn.Linear(12, 16), nn.Embedding(90, 16)
        self.text = nn.GRU(16, 16, batch_first=True)
        self.place = place

    def forward(self, images: torch.Tensor, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        seen = F.normalize(self.visual(images.flatten(1)), dim=-1)
        read = F.normalize(self.text(self.token_embedding(input_ids))[0][:, self.place], dim=-1)
        return {"loss": F.cross_entropy(10 * seen @ read.T, torch.arange(len(seen)))}


@pytest.mark.parametrize("place", [0, -1])
def test_a_text_that_is_read_at_its_first_token(place: int) -> None:
    torch.manual_seed(0)
    ids = torch.randint(5, 80, (5, 9))
    ids[:, 0], ids[:, -1] = 88, 89
    found = checked(Contrastive(place), batch={"images": torch.randn(5, 3, 2, 2), "input_ids": ids}).findings
    assert [finding.rule for finding in found] == ([] if place else ["text-without-effect"])


class Experts(nn.Module):
    def __init__(self, coefficient: float) -> None:
        super().__init__()
        self.router, self.expert = nn.Linear(4, 2), nn.Linear(4, 4)
        self.coefficient = coefficient

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        weights = self.router(x).softmax(-1)
        auxiliary = weights.mean(0).square().sum()
        loss = (self.expert(x) * weights[..., :1]).square().mean()
        return {
            "loss": loss + self.coefficient * auxiliary if self.coefficient else loss,
            "aux_loss": auxiliary,
        }


@pytest.mark.parametrize("coefficient", [0.0, 0.01])
def test_an_auxiliary_loss_that_nobody_adds(coefficient: float) -> None:
    found = checked(Experts(coefficient), batch={"x": torch.randn(6, 4)}).findings
    assert [finding.rule for finding in found] == ([] if coefficient else ["auxiliary-left-out"])
