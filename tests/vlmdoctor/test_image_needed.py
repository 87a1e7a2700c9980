"""Learning one batch with and without its images, where only they tell the answers apart."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_vlm
import torch
from torch import nn

import vlmdoctor
from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.image_needed import ImageNeeded
from vlmdoctor.report import Report
from vlmdoctor.subject import Subject


def measured(model: nn.Module, batch: Any) -> ImageNeeded:
    seen = Gatherer(Subject(model=model, batch=batch), depth="steps")(ImageNeeded)
    assert isinstance(seen, ImageNeeded)
    return seen


def examined(model: nn.Module) -> Report:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    report = vlmdoctor.check(model, tiny_vlm.batch(0), optimizer=optimizer, select=["image-adds-nothing"])
    assert report.crashed == () and report.ran == ("image-adds-nothing",)
    return report


def faint() -> nn.Module:
    model = tiny_vlm.TinyVLM()
    with torch.no_grad():
        model.vision_proj.requires_grad_(False).weight.mul_(1e-6)
        model.vision_proj.bias.zero_()
    return model


def test_a_model_that_looks_gets_below_what_the_text_tells() -> None:
    seen = measured(tiny_vlm.TinyVLM(), tiny_vlm.batch(0))
    assert (seen.ambiguous, seen.supervised) == (8, 24)  # the first of three answer tokens in each row
    assert seen.blank is None and seen.shown.best < 0.7  # the logarithm of 8, for a third of them
    assert examined(tiny_vlm.TinyVLM()).findings == ()


def test_features_that_are_too_faint() -> None:
    model = faint()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (finding,) = examined(model).findings
    assert finding.severity == "info" and "the images add nothing" in finding.message
    assert finding.measured["tokens_only_images_tell"] == 8
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_the_text_tells_is_not_asked_of_the_images() -> None:
    batch = tiny_vlm.batch(0)
    batch["input_ids"][:, tiny_vlm.IMAGE_TOKENS] = torch.arange(8) + 40  # each row asks something else
    with pytest.raises(Unavailable, match="ask the same"):
        measured(tiny_vlm.TinyVLM(), batch)


def test_equal_images_tell_nothing_apart_either() -> None:
    batch = tiny_vlm.batch(0)
    batch["pixel_values"][:] = batch["pixel_values"][:1].clone()
    with pytest.raises(Unavailable, match="ask the same"):
        measured(tiny_vlm.TinyVLM(), batch)
