"""Labels, schedules and optimizers that bring along what they should not, and their healthy twins."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vlmdoctor
from benchmarks.detection.corpus import by_name

RULES = [
    *("OPT145", "OPT146", "OPT147", "OPT302", "LOSS301", "LOSS378", "LOSS379", "MASK180", "PARAM120"),
    *("DATA309", "IMG305", "IMG346"),
]
FAULTS = [
    "B12-cross-attention-mask-of-the-prompt/mllama",
    "B16-image-behind-the-answer/smolvlm",
    "D08-masked-labels-clamped/paligemma",
    "F10-schedule-not-restored/llama",
    "F10-state-of-another-order/llava",
    "G07-cosine-over-epochs/llama",
    "X-decoder-fed-its-labels/vision-encoder-decoder",
    "X-epsilon-of-1e8/nanovlm",
    "X-frozen-norms-in-training-mode/prefix_lm",
    "X-reference-is-the-policy/qwen3",
    "X-start-token-twice/smolvlm",
]
HEALTHY = [
    "vlm/vision-encoder-decoder",
    "vlm/t5gemma2",
    "vlm/paligemma",
    "vlm/mllama",
    "vlm/blip",
    "handwritten/captioner",
    "handwritten/prefix_lm",
    "variant/already-trained/llama",
    "variant/warmup-and-cosine/llama",
    "variant/summed-and-divided/llama",
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
    assert {finding.rule for finding in checked(case.make()).findings} == set(case.rules)


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_ones_are_left_alone(name: str) -> None:
    assert checked(by_name()[name].make()).findings == ()


def test_rates_that_are_lost_in_rounding_are_named() -> None:
    subject = by_name()["X-layer-decay-upside-down/llava"].make()
    (finding,) = vlmdoctor.check(subject, select=["weights-not-moving"]).findings
    assert "learning rate is 1e-15" in finding.message


class Captioner(nn.Module):
    """A prefix of four places in front of the text."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(12, 4 * 32)
        self.wte = nn.Embedding(90, 32)
        self.h = nn.ModuleList(nn.GRU(32, 32, batch_first=True) for _ in range(1))
        self.lm_head = nn.Linear(32, 90)

    def forward(self, images: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        prefix = self.project(images.flatten(1)).unflatten(1, (4, 32))
        x, _ = self.h[0](torch.cat([prefix, self.wte(input_ids)], dim=1))
        return self.lm_head(x)


@pytest.mark.parametrize("start", [0, 3])
def test_a_loss_that_forgets_the_prefix(start: int) -> None:
    torch.manual_seed(0)
    batch = {"images": torch.randn(3, 3, 2, 2), "input_ids": torch.randint(5, 90, (3, 14))}

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        ids = batch["input_ids"]
        logits = model(**batch)[:, start : start + ids.shape[1]]
        return F.cross_entropy(logits.flatten(0, 1), ids.flatten())

    found = checked(Captioner(), batch=batch, loss_fn=loss_fn).findings
    assert [finding.rule for finding in found] == ([] if start else ["labels-shifted-twice"])
    assert start or "4 features come before the text" in found[0].cause


def test_a_frozen_copy_as_reference_is_fine() -> None:
    subject = by_name()["decoder/qwen3"].make()
    reference = copy.deepcopy(subject.model).eval().requires_grad_(False)

    def answer(model: Any, batch: Any) -> torch.Tensor:
        logits = model(input_ids=batch["input_ids"]).logits[:, :-1].log_softmax(-1)
        return logits.gather(-1, batch["input_ids"][:, 1:, None])[..., 0].sum(-1)

    def loss_fn(model: Any, batch: Any) -> torch.Tensor:
        with torch.no_grad():
            known = answer(reference, batch)
        better, worse = answer(model, batch) - known
        return -F.logsigmoid(0.1 * (better - worse))

    report = checked(subject.model, batch=subject.batch, loss_fn=loss_fn, optimizer=subject.optimizer)
    assert report.findings == ()


def test_a_norm_that_is_frozen_alone_is_meant() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    model[1].requires_grad_(False)
    assert checked(model).findings == ()
    model[0].requires_grad_(False)
    part = nn.Sequential(model[:2], nn.Linear(4, 2))
    (finding,) = checked(part).findings
    assert finding.rule == "batchnorm-not-in-eval" and finding.at == ("0.1",)


@pytest.mark.parametrize("used", [True, False])
def test_new_tokens_of_the_batch_are_enough_without_a_tokenizer(used: bool) -> None:
    peft = pytest.importorskip("peft")
    subject = by_name()["decoder/llama"].make()
    checkpoint = {name: value.clone() for name, value in subject.model.state_dict().items()}
    subject.model.resize_token_embeddings(260, mean_resizing=False)
    if used:
        subject.batch["input_ids"][:, 3] = 258
    model = peft.get_peft_model(subject.model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    report = vlmdoctor.check(model, subject.batch, checkpoint=checkpoint, select=["new-rows-frozen"])
    assert [finding.rule for finding in report.findings] == (["new-rows-frozen"] if used else [])
