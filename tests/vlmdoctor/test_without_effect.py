"""Pixels in the wrong order; words, auxiliary losses, routers and masks without effect, or a false one."""

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

RULES = ["IMG347", "IMG348", "LOSS380", "LOSS381", "MASK181", "MASK182"]
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


@pytest.mark.parametrize(
    ("coefficient", "rules"), [(0.0, ["auxiliary-left-out"]), (0.01, []), (1e4, ["auxiliary-dominates"])]
)
def test_an_auxiliary_loss_and_its_part_of_the_loss(coefficient: float, rules: list[str]) -> None:
    found = checked(Experts(coefficient), batch={"x": torch.randn(6, 4)}).findings
    assert [finding.rule for finding in found] == rules


class Routed(nn.Module):
    """Two experts in each of two layers; a third layer of one expert makes the router a small part."""

    def __init__(self, weighted: bool) -> None:
        super().__init__()
        self.weighted = weighted
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {"router": nn.Linear(8, 2), "experts": nn.ModuleList(nn.Linear(8, 8) for _ in range(2))}
            )
            for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        for layer in self.layers:
            weights = layer["router"](x).softmax(-1)
            if not self.weighted:
                weights = F.one_hot(weights.argmax(-1), 2).float()
            x = x + sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(layer["experts"]))
        return {"loss": x.square().mean()}


@pytest.mark.parametrize("weighted", [True, False])
def test_routers_that_no_gradient_reaches(weighted: bool) -> None:
    torch.manual_seed(0)
    report = vlmdoctor.check(Routed(weighted), {"x": torch.randn(9, 8)}, select=["no-gradient"])
    assert [f.message for f in report.findings] == (
        [] if weighted else ["no gradient reaches the routers: 4 tensors, while the experts learn"]
    )


class Reader(nn.Module):
    """An encoder that is given a padding mask, the right way round or not."""

    def __init__(self, inverted: bool) -> None:
        super().__init__()
        self.inverted = inverted
        self.embed = nn.Embedding(60, 16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, answers: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        hidden = attention_mask.bool() if self.inverted else attention_mask == 0
        read = self.encoder(self.embed(input_ids), src_key_padding_mask=hidden)[:, 0]
        return {"loss": F.cross_entropy(self.head(read), answers)}


@pytest.mark.parametrize("inverted", [True, False])
def test_tokens_behind_an_inverted_mask(inverted: bool) -> None:
    torch.manual_seed(0)
    ids = torch.randint(5, 60, (3, 9))
    mask = torch.ones_like(ids)
    mask[:, 6:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "answers": torch.tensor([0, 3, 1])}
    found = checked(Reader(inverted), batch=batch).findings
    assert [finding.rule for finding in found] == (["hidden-tokens-seen"] if inverted else [])
