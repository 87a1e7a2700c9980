"""Positions on their way into tables, labels beside their texts, and what comes together at the join."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import vlmdoctor
from benchmarks.detection.case import Case
from benchmarks.detection.corpus import by_name
from benchmarks.detection.models import make
from vlmdoctor.engine import Gatherer
from vlmdoctor.evidence.image_feature_scale import ImageFeatureScale
from vlmdoctor.evidence.positions import Positions
from vlmdoctor.probes.positions.positions import _compared

RULES = ["ROPE14", "LOSS34", "IMG34", "CFG34", "OPT14"]
HEALTHY = [
    "variant/positions-of-its-own/qwen3_vl",
    "variant/positions-counted/gpt2",
    "variant/positions-counted/opt",
    "variant/packed-with-a-mask/llama",
    "vlm/blip-2",
    "vlm/mllama",
    "vlm/gemma3",
    "variant/a-row-without-an-image/smolvlm",
]
FAULTS = [
    "B08-one-dimensional-positions/qwen2_5_vl",
    "B08-axes-exchanged/glm4v",
    "X-positions-all-zero/gpt2",
    "X-positions-backwards/opt",
    "X-positions-through-the-batch/internvl",
    "X-labels-of-another-row/llama",
    "X-labels-one-row-on/smolvlm",
    "D10-stop-token-masked/llava",
    "C01-pixels-rescaled-twice/internvl",
    "C01-pixels-rescaled-twice-no-processor/qwen2_5_vl",
    "C01-pixels-not-rescaled-no-processor/llava",
    "X-features-a-thousandfold/nanovlm",
    "X-dropout-of-nine-tenths/prefix_lm",
    "X-learning-rate-of-a-thousand/llama",
    "X-adam-with-a-rate-of-one/qwen3",
]
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def looked_at(name: str) -> tuple[Case, Any]:
    torch.manual_seed(0)
    case = by_name()[name]
    report = vlmdoctor.check(case.make(), select=RULES)
    assert report.crashed == ()
    return case, report


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy(name: str) -> None:
    assert looked_at(name)[1].findings == ()


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str) -> None:
    case, report = looked_at(name)
    (finding,) = report.findings
    assert finding.severity != "info"
    assert not case.at or any(place in " ".join(finding.at) for place in case.at)


class TestPositions:
    def test_a_table_in_a_module_is_read_where_the_batch_has_no_positions(self) -> None:
        made = make("gpt2")
        seen = Gatherer(made.subject())(Positions)
        assert seen.given is None
        (place,) = [place for place in seen.places if place.module.endswith("wpe")]
        assert all(row.rising == row.pairs > 0 for row in place.rows)

    def test_a_module_that_makes_them_wrong_is_named(self) -> None:
        """The batch has none, and the model counts the wrong thing."""
        made = make("gpt2")
        made.model.transformer.wpe.register_forward_pre_hook(lambda _, given: (torch.zeros_like(given[0]),))
        (finding,) = vlmdoctor.check(made.subject(), select=["ROPE14"]).findings
        assert finding.rule == "constant-positions"
        assert "transformer.wpe" in finding.at
        assert "itself" in finding.cause

    def test_positions_that_the_model_ignores_are_not_judged(self) -> None:
        made = make("gpt2")
        forward = made.model.transformer.wpe.forward
        counted = torch.arange(made.batch["input_ids"].shape[1])[None]
        made.model.transformer.wpe.forward = lambda ids: forward(counted)
        made.model.transformer.wpe.register_forward_pre_hook(lambda _, given: (counted,))
        made.batch["position_ids"] = torch.zeros_like(made.batch["input_ids"])
        assert vlmdoctor.check(made.subject(), select=["ROPE14"]).findings == ()

    @pytest.mark.parametrize("added", [0, 7])
    def test_a_number_added_to_a_row_makes_no_difference(self, added: int) -> None:
        own = torch.tensor([[0, 1, 1, 1, 3], [0, 1, 1, 2, 3], [0, 1, 2, 1, 3]])[:, None]
        valid = torch.ones(1, 5, dtype=torch.bool)
        assert _compared(own, own + added, valid).differing == 0

    def test_packed_rows_are_left_out(self) -> None:
        made = make("qwen2_5_vl")
        ids = made.batch["input_ids"]
        half = ids.shape[1] // 2
        count = torch.cat([torch.arange(half), torch.arange(ids.shape[1] - half)])
        made.batch["position_ids"] = count.expand(3, len(ids), -1).contiguous()
        seen = Gatherer(made.subject())(Positions)
        assert seen.expected is None and seen.no_expected == "several samples share each row"

    def test_leaves_no_trace(self) -> None:
        made = make("qwen2_vl")
        before = {name: value.clone() for name, value in made.model.state_dict().items()}
        state = torch.get_rng_state()
        gather = Gatherer(made.subject())
        gather(Positions), gather(ImageFeatureScale)
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
        assert made.model.training and not any(m._forward_pre_hooks for m in made.model.modules())
        assert made.model.model.rope_deltas is None


class TestJoin:
    @pytest.mark.parametrize(("family", "places"), [("llava", 32), ("nanovlm", 8), ("qwen2_5_vl", 8)])
    def test_image_places_are_found_without_their_ids(self, family: str, places: int) -> None:
        made = make(family)
        found = Gatherer(made.subject())(ImageFeatureScale)
        assert found.image_places == places
        assert found.text_places == made.batch["input_ids"].numel() - places
        assert 0.1 < found.image_size / found.text_size < 100

    def test_models_that_attend_across_are_left_alone(self) -> None:
        report = vlmdoctor.check(make("mllama").subject(), select=["feature-scale"])
        assert [name for name, _ in report.skipped] == ["feature-scale"]


def test_a_scale_on_the_embeddings_is_part_of_the_text() -> None:
    """Gemma multiplies its embeddings by the root of their width: what counts is what enters the layers."""
    made = make("gemma3")
    for parameter in made["projector"].parameters():
        nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(0))
    found = Gatherer(made.subject())(ImageFeatureScale)
    width = made["embed"].weight.shape[1]
    assert found.text_size == pytest.approx(
        float(made["embed"].weight.square().mean().sqrt()) * width**0.5, rel=0.3
    )
