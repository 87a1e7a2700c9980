"""Float types at the joints of a model: what is promoted in silence, and what is meant."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import families
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vlmdoctor
from vlmdoctor.finding import Finding

WIDTH = 16


class Norm(nn.Module):
    """Gives out the type of its own weights, as many a hand-written one does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * wide.square().mean(-1, keepdim=True).add(1e-6).rsqrt()).type_as(
            self.weight
        ) * self.weight


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = Norm(), nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)
        self.scale = nn.Parameter(torch.full((WIDTH,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(F.silu(self.up(self.norm(x))))


class Mixed(nn.Module):
    """A small decoder without attention, with features in front of its text."""

    def __init__(self, way: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.vision_proj, self.embed = nn.Linear(12, WIDTH), nn.Embedding(40, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(4))
        self.norm, self.lm_head = Norm(), nn.Linear(WIDTH, 40)
        self.config = SimpleNamespace(residual_in_fp32=way == "meant")
        self.table = torch.randn(64, WIDTH)  # no buffer, so that no cast reaches it

    def forward(self, input_ids: Tensor, pixel_values: Tensor, labels: Tensor) -> Any:
        features = self.vision_proj(pixel_values.to(self.vision_proj.weight.dtype))
        x = torch.cat(
            [features if self.way != "cast" else features.to(self.embed.weight.dtype), self.embed(input_ids)],
            1,
        )
        if self.way == "table":
            x = x + self.table[: x.shape[1]]
        for layer in self.layers:
            x = layer(x)
        logits = self.lm_head(self.norm(x))[:, pixel_values.shape[1] :]
        return {"loss": F.cross_entropy(logits.float().flatten(0, 1), labels.flatten()), "logits": logits}


def batch() -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 40, (2, 6), generator=drawn)
    return {"input_ids": ids, "pixel_values": torch.randn(2, 4, 12, generator=drawn), "labels": ids.clone()}


def found(model: nn.Module, given: Any = None, **more: Any) -> tuple[Finding, ...]:
    report = vlmdoctor.check(model, given or batch(), select=["promoted-to-float32"], **more)
    assert report.crashed == () and report.ran == ("promoted-to-float32",)
    return report.findings


def half(way: str) -> Mixed:
    model = Mixed(way).bfloat16()
    model.vision_proj.float()
    return model


@pytest.mark.parametrize("way", ["", "meant"])
def test_a_projector_in_float32_promotes_the_decoder(way: str) -> None:
    findings = found(half(way))
    if way == "meant":
        assert findings == ()
        return
    (finding,) = findings
    assert finding.severity == "warning" and finding.at == ("vision_proj", "layers")
    assert finding.message == "float32 activations run through 4 of 4 layers of bfloat16 weights in layers"
    assert "vision_proj, whose weights are in float32" in (finding.cause or "")


def test_a_cast_at_the_joint_is_all_it_takes() -> None:
    assert found(half("cast")) == ()


def test_a_scale_in_float32_promotes_from_its_layer_on() -> None:
    model = Mixed().bfloat16()
    for layer in model.layers:
        layer.scale.data = layer.scale.data.float()
    (finding,) = found(model)
    assert finding.at == ("layers.0", "layers") and finding.measured["layers"] == 3
    assert "some of its own weights" in (finding.cause or "")


def test_what_no_module_gives_out_is_for_information() -> None:
    (finding,) = found(Mixed("table").bfloat16())
    assert finding.severity == "info" and "not established" in (finding.cause or "")


def test_autocast_and_one_type_are_no_matter() -> None:
    assert found(Mixed()) == () and found(Mixed().bfloat16()) == ()

    def under_autocast(model: nn.Module, given: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(**given)["loss"]

    assert found(half(""), loss_fn=under_autocast) == ()


@pytest.mark.parametrize("family", [*families.DECODERS, *families.VLMS])
def test_families_in_bfloat16(family: str) -> None:
    model, given = families.build(family)
    given = {k: v.bfloat16() if v.is_floating_point() else v for k, v in given.items()}
    assert found(model.bfloat16(), given) == ()
