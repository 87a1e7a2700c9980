"""NaN, overflow, and dtypes that meet, in real small models."""

from __future__ import annotations

import pytest
import torch
from families import DECODERS, VLMS, build
from tiny_vlm import TinyVLM
from tiny_vlm import batch as tiny_batch
from torch import nn

import vlmdoctor
from vlmdoctor.finding import Finding


def findings(model: nn.Module, batch: object, **given: object) -> list[Finding]:
    report = vlmdoctor.check(model, batch, depth="forward", **given)
    assert report.crashed == ()
    return list(report.findings)


@pytest.mark.parametrize("family", [*DECODERS, *VLMS])
def test_healthy(family: str) -> None:
    model, batch = build(family)
    assert findings(model, batch, training_args={"fp16": True}) == []


def test_the_first_module_that_overflows() -> None:
    model, batch = TinyVLM(), tiny_batch(0)
    with torch.no_grad():
        model.vision_proj.weight.mul_(1e38)
        model.vision_proj.bias.fill_(3e38)
    (finding,) = findings(model, batch)
    assert (finding.rule, finding.at) == ("non-finite-forward", ("vision_proj",))


def test_weights_and_pixels_that_are_not_numbers() -> None:
    model, batch = TinyVLM(), tiny_batch(0)
    batch["pixel_values"][0, 0, 0, 0] = torch.nan
    (finding,) = findings(model, batch)
    assert (finding.rule, finding.at[0]) == ("pixels-not-usable", "pixel_values")
    assert finding.symptoms == ("the forward pass gives NaN or infinity in the batch",)
    model = TinyVLM()
    with torch.no_grad():
        model.vision_proj.bias[0] = torch.inf
    (finding,) = findings(model, tiny_batch(0))
    assert (finding.rule, finding.at) == ("non-finite-forward", ("vision_proj.bias",))


def test_a_batch_without_labels_is_legal() -> None:
    model, batch = build("llama")
    batch["labels"].fill_(-100)
    assert "non-finite-forward" not in {f.rule for f in findings(model, batch)}


def test_too_large_for_float16() -> None:
    model, batch = TinyVLM(), tiny_batch(0)
    with torch.no_grad():
        model.vision_proj.weight.mul_(1e6)
    # Features of that size are told as well; here it is about their range.
    given = {"ignore": ["feature-scale"]}
    (finding,) = findings(model, batch, training_args={"fp16": True}, **given)
    assert (finding.rule, finding.at) == ("beyond-float16", ("language_model.layers.0",))
    assert findings(model, batch, training_args={"bf16": True}, **given) == []


def test_two_dtypes_at_the_projector() -> None:
    model = TinyVLM()
    model.vision_proj.to(torch.bfloat16)
    (finding,) = findings(model, tiny_batch(0))
    assert finding.rule == "dtype-mismatch"
    assert finding.message == "dtype mismatch: bfloat16 and float32 meet in vision_proj, which raises"
