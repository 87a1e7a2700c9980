"""Models as strangers write them: what is found in them, where, and by how many findings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import vlmdoctor
from benchmarks.detection.corpus import by_name
from benchmarks.detection.models import make
from benchmarks.detection.score import verdict
from vlmdoctor.engine import Gatherer
from vlmdoctor.evidence.alignment import Alignment
from vlmdoctor.evidence.contract_status import ContractStatus
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.report import Report
from vlmdoctor.subject import Subject

FAULTS = {
    "D02-every-label-masked/nanovlm": "targets",
    "D02-every-target-is-minus-one/nanogpt_images": "targets",
    "D14-shifted-twice/llava_scratch": "labels",
    "D14-tgt-shifted-twice/hf_wrapper": "tgt",
    "X-not-shifted-by-the-trainer/captioner": "labels",
    "X-criterion-ignores-all/captioner": "the loss",
    "X-loss-of-the-wrong-sign/captioner": "the loss",
    "A08-no-causal-mask-in-the-decoder/captioner": "decoder.dec.0",
    "A08-triu-for-tril/nanogpt_images": "transformer.h.0.attn",
    "X-detach-between-layers/captioner": "decoder.dec.0",
    "X-dead-relu-projector/nanogpt_images": "see",
    "X-vision-tower-never-called/hf_wrapper": "clip",
    "X-left-padding-seen-in-tokens/hf_wrapper": "attn_mask",
    "X-nan-in-a-weight/llama": "model.layers.1",
    "B13-pixels-dropped/llava": "pixel_values",
    "B10-image-block-is-causal/paligemma": "token_type_ids",
}


def examined(name: str) -> Report:
    torch.manual_seed(0)
    return vlmdoctor.check(by_name()[name].make())


@pytest.mark.parametrize("name", FAULTS)
def test_one_fault_is_one_finding_with_its_place(name: str) -> None:
    report = examined(name)
    alarms = [finding for finding in report.findings if finding.severity.rank > 0]
    assert len(alarms) == 1, [finding.message for finding in alarms]
    assert alarms[0].at[0].startswith(FAULTS[name])
    told = {"findings": report.to_dict()["findings"]}
    assert verdict(by_name()[name], told).right
    assert not report.crashed


@pytest.mark.parametrize("family", ["nanogpt_images", "captioner", "hf_wrapper"])
def test_healthy_ones_are_left_in_peace(family: str) -> None:
    report = examined(f"handwritten/{family}")
    assert [finding.message for finding in report.findings] == []
    assert {"future-leak", "image-without-effect", "wrong-image", "labels-not-shifted"} <= set(report.ran)


@pytest.mark.parametrize("family", ["nanovlm", "llava_scratch", "flamingo", "captioner", "hf_wrapper"])
def test_the_next_token_is_what_each_is_taught(family: str) -> None:
    gather = Gatherer(make(family).subject())
    if family == "flamingo":
        assert gather(Forward).supervised_tokens == 21
        return
    assert gather(Alignment).ahead == 1


@pytest.mark.parametrize(
    ("family", "term"), [("nanovlm", "assistant + stop"), ("llava_scratch", "assistant + stop")]
)
def test_what_is_supervised_is_told_without_a_tokenizer(family: str, term: str) -> None:
    assert Gatherer(make(family).subject())(ContractStatus).seen["supervise"] == term


class Twice(nn.Module):
    """Predicts from what it has embedded, and gives a loss that is more than a cross-entropy."""

    def __init__(self, more: float = 0.0) -> None:
        super().__init__()
        self.embed, self.head, self.more = nn.Embedding(50, 16), nn.Linear(16, 50), more

    def forward(self, words: torch.Tensor, answers: torch.Tensor) -> dict[str, Any]:
        scores = self.head(self.embed(words))
        loss = nn.functional.cross_entropy(scores.transpose(1, 2), answers, label_smoothing=0.1)
        return {"train_loss": loss + self.more * scores.square().mean(), "scores": scores, "logits": scores}


def test_a_loss_of_several_terms_is_seen_through() -> None:
    words = torch.randint(5, 50, (2, 12), generator=torch.Generator().manual_seed(0))
    repeated = Subject(Twice(0.1), batch={"words": words, "target_words": words.clone()})
    repeated.model.forward = lambda words, target_words: Twice.forward(repeated.model, words, target_words)
    assert Gatherer(repeated)(Alignment).ahead == 0
