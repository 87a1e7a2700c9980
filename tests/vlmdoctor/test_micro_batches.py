"""A batch against its rows run one by one: what couples them, and families that couple nothing."""

from __future__ import annotations

from typing import Any

import families
import pytest
import tiny_vlm
import torch
from torch import Tensor, nn

import vlmdoctor
from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.micro_batches import MicroBatches
from vlmdoctor.report import Report
from vlmdoctor.subject import Subject


def examined(model: nn.Module, batch: Any, steps: int = 4, **given: Any) -> Report:
    report = vlmdoctor.check(
        model,
        batch,
        training_args={"gradient_accumulation_steps": steps},
        select=["accumulation-mismatch"],
        **given,
    )
    assert report.crashed == () and report.ran == ("accumulation-mismatch",)
    return report


def measured(model: nn.Module, batch: Any) -> MicroBatches:
    seen = Gatherer(Subject(model=model, batch=batch), depth="forward")(MicroBatches)
    assert isinstance(seen, MicroBatches)
    return seen


class Normalised(nn.Module):
    """The projector, and a batch normalisation of its features behind it."""

    def __init__(self, projector: nn.Module, *, pooled: bool = False, frozen: bool = False) -> None:
        super().__init__()
        self.linear, self.norm = projector, nn.BatchNorm1d(tiny_vlm.WIDTH)
        self.pooled, self.frozen = pooled, frozen

    def train(self, mode: bool = True) -> Normalised:
        super().train(mode)
        if self.frozen:
            self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if self.pooled:
            return x + self.norm(x.mean(1))[:, None]
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


def normalised(**how: bool) -> nn.Module:
    model = tiny_vlm.TinyVLM()
    model.vision_proj = Normalised(model.vision_proj, **how)  # type: ignore[assignment]
    return model.train()


@pytest.mark.parametrize("family", [*families.DECODERS, *families.VLMS])
def test_the_rows_of_families_add_up(family: str) -> None:
    model, batch = families.build(family)
    assert examined(model, batch).findings == ()
    seen = measured(model, batch)
    tokens = [int((row[1:] != -100).sum()) for row in batch["labels"]]
    assert len(seen.losses) == len(tokens) > 1
    mean = sum(n * loss for n, loss in zip(tokens, seen.losses, strict=True)) / sum(tokens)
    assert seen.loss == pytest.approx(mean, rel=2e-3)


def test_the_images_of_a_row_go_with_it() -> None:
    """Of patches in one long row there are as many for each sample as it has placeholders."""
    model, batch = families.build("qwen2_vl")
    assert len(batch["pixel_values"]) > len(batch["input_ids"])
    shown = measured(model, batch).losses
    blank = {**batch, "pixel_values": batch["pixel_values"].clone()}
    blank["pixel_values"][len(batch["pixel_values"]) // 2 :] = 0
    changed = measured(model, blank).losses
    assert changed[0] == shown[0] and changed[1] != shown[1]


def test_a_normalisation_over_the_batch_is_named() -> None:
    (finding,) = examined(normalised(), tiny_vlm.batch(0)).findings
    assert finding.severity == "warning" and finding.at == ("vision_proj.norm",)
    assert "vision_proj.norm is a BatchNorm1d in training mode" in (finding.cause or "")
    assert len(finding.measured["losses_of_its_parts"]) == 4  # eight rows, two at a time


def test_without_accumulation_it_is_how_the_model_is_made() -> None:
    assert examined(normalised(), tiny_vlm.batch(0), steps=1).findings == ()


def test_frozen_statistics_are_no_matter() -> None:
    assert examined(normalised(frozen=True), tiny_vlm.batch(0)).findings == ()
    model = normalised()
    model.vision_proj.norm.eval()  # by hand, after train()
    assert examined(model, tiny_vlm.batch(0)).findings == ()


def test_evaluation_mode_is_left_for_training() -> None:
    (finding,) = examined(normalised().eval(), tiny_vlm.batch(0)).findings
    assert finding.at == ("vision_proj.norm",)


def test_one_row_alone_can_not_be_normalised() -> None:
    model, batch = normalised(pooled=True), tiny_vlm.batch(0, 2)
    (finding,) = examined(model, batch, steps=1).findings
    assert finding.severity == "info" and finding.at == ("vision_proj.norm",)
    assert examined(model, batch).findings[0].severity == "warning"


def test_a_batch_of_one_row() -> None:
    (finding,) = examined(normalised(), tiny_vlm.batch(0, 1)).findings
    assert finding.message.startswith("vision_proj.norm normalises each batch of one row separately")
    assert examined(tiny_vlm.TinyVLM(), tiny_vlm.batch(0, 1)).findings == ()


def test_a_contrastive_loss() -> None:
    from benchmarks.detection.handwritten import clip

    torch.manual_seed(0)
    model, batch, loss_fn = clip.build()
    (finding,) = examined(model, batch, loss_fn=loss_fn).findings
    assert "the loss compares its rows" in finding.message


def test_a_leak_between_rows_is_reported_once() -> None:
    class Centred(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x - x.mean(0))

    model = tiny_vlm.TinyVLM(tied=False)
    model.lm_head = Centred(tiny_vlm.WIDTH, tiny_vlm.VOCABULARY, bias=False)
    report = vlmdoctor.check(
        model,
        tiny_vlm.batch(0),
        training_args={"gradient_accumulation_steps": 4},
        select=["accumulation-mismatch", "sample-leak"],
    )
    assert [f.rule for f in report.findings] == ["sample-leak"]


def test_a_row_without_an_image_goes_without_one() -> None:
    model, batch = families.build("llava")
    placeholder = model.config.image_token_id
    ids = batch["input_ids"]
    ids[1] = ids[1].masked_fill(ids[1] == placeholder, 7)
    batch["pixel_values"] = batch["pixel_values"][:1]
    seen = measured(model, batch)
    assert len(seen.losses) == 2 and seen.is_a_mean


def test_images_of_nobody_are_not_guessed_at() -> None:
    model, batch = families.build("llava")
    batch["pixel_values"] = batch["pixel_values"][:1].repeat(3, 1, 1, 1)
    with pytest.raises(Unavailable):
        measured(model, batch)


def test_running_statistics_are_left_alone() -> None:
    model = normalised()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    measured(model, tiny_vlm.batch(0))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and model.vision_proj.norm.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def moving(model: nn.Module) -> list[str]:
    report = vlmdoctor.check(model, select=["batchnorm-not-in-eval"])
    assert report.crashed == () and report.ran == ("batchnorm-not-in-eval",)
    return [at for finding in report.findings for at in finding.at]


def test_frozen_weights_do_not_freeze_the_statistics() -> None:
    model = normalised()
    assert moving(model) == []
    model.vision_proj.requires_grad_(False)
    assert moving(model) == ["vision_proj.norm"]
    assert moving(model.eval()) == []
    model.train().vision_proj.norm.eval()
    assert moving(model) == []


def test_a_tower_that_keeps_itself_in_evaluation_mode() -> None:
    model = normalised(frozen=True)
    model.vision_proj.requires_grad_(False)
    assert moving(model) == []
