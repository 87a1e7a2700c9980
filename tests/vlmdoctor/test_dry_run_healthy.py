"""Factories of healthy models in a dry run: nothing is found, and nothing of a user's model is changed."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn

import vlmdoctor
from benchmarks.detection.corpus import by_name
from benchmarks.detection.runner import dry_run_of, examine
from vlmdoctor.dryrun.abstract import Abstract
from vlmdoctor.dryrun.meta_copy import meta_copy
from vlmdoctor.dryrun.unknown import ValueUnknown
from vlmdoctor.errors import Unavailable
from vlmdoctor.probes.dry_run.shapes import shapes_of

# Norms made by torch.ones, towers with positions that are made empty, images that are counted in the step.
HEALTHY = (
    "decoder/llama",
    "decoder/llama4_text",
    "handwritten/clip",
    "handwritten/hf_wrapper",
    "handwritten/nanovlm",
    "minivlm/tiny",
    "variant/lora/llava",
    "variant/positions-of-its-own/qwen3_vl",
    "variant/tied-decoder/llama",
    "vlm/gemma3",
    "vlm/hunyuan_vl",
    "vlm/inkling2",
    "vlm/llava",
    "vlm/qwen2_5_vl",
)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers and peft among themselves
@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_found(name: str) -> None:
    report = dry_run_of(by_name()[name])
    alarms = [f.message for f in report.findings if f.severity != "info"]
    assert alarms == [] and not report.crashed
    assert "shape-clash" in report.ran  # the step was carried


def test_the_benchmark_tells_of_a_dry_run_as_of_a_check() -> None:
    outcome = examine(by_name()["decoder/llama"], "shapes")
    assert outcome["findings"] == [] and outcome["ran"] > 10


class Looking(nn.Module):
    """An embedding of places, whose buffer is left empty or filled."""

    def __init__(self, places: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("places", places, persistent=False)
        self.table = nn.Embedding(4, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.table(self.places) + x).sum()


def step(model: nn.Module) -> Any:
    return shapes_of(model, (torch.zeros(4, 8),), lambda m, batch: m(*batch))


def test_a_buffer_that_was_left_empty_is_unknown() -> None:
    with Abstract():
        empty = torch.empty(4, dtype=torch.long)
        model = Looking(torch.empty_like(empty))
    assert meta_copy(model).places.is_meta
    assert step(model).failure is None


def test_a_buffer_that_was_filled_is_known() -> None:
    with Abstract():
        places = torch.empty(4, dtype=torch.long)
        places[:2] = torch.arange(2)
        places[2:].copy_(torch.arange(8, 10))
        model = Looking(places)
    assert meta_copy(model).places.tolist() == [0, 1, 8, 9]
    assert step(model).failure.type == "IndexError"


def test_a_shape_that_depends_on_what_was_left_empty_is_not_carried() -> None:
    with Abstract(), pytest.raises(ValueUnknown):
        torch.empty(4, dtype=torch.long).nonzero()


def test_memory_that_is_used_again_is_known() -> None:
    with Abstract():
        for _ in range(20):
            torch.empty(64, dtype=torch.long)
            assert torch.full((64,), 3).unique().tolist() == [3]


class Particular(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.device.type == "cpu", "only for processors"
        return super().forward(x).sum()


def test_an_assertion_on_devices_is_no_clash_of_shapes() -> None:
    with pytest.raises(Unavailable, match="an assertion on devices"):
        shapes_of(nn.Sequential(nn.Linear(4, 4), Particular(4, 4)), (torch.zeros(2, 4),), lambda m, b: m(*b))


def test_an_assertion_on_shapes_is_a_clash() -> None:
    class Wide(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[-1] == 9
            return super().forward(x)

    found = shapes_of(Wide(4, 4), (torch.zeros(2, 4),), lambda m, b: m(*b).sum())
    assert found.failure.type == "AssertionError"


def test_gradients_stay_where_forward_is_a_function_of_the_original() -> None:
    model = nn.Linear(4, 4)
    plain = model.forward
    model.forward = functools.wraps(plain)(lambda x: plain(x))
    model.bias.grad = held = torch.ones(4)
    report = vlmdoctor.check(model, (torch.zeros(2, 4),), loss_fn=lambda m, b: m(*b).sum(), depth="shapes")
    assert model.weight.grad is None and model.bias.grad is held
    assert "no-gradient" not in [f.rule for f in report.findings]
    assert "belongs to another object" in dict(report.skipped)["shape-clash"]


@pytest.mark.parametrize("name", ["variant/grown-tables/gpt2", "variant/grown-tables/llava"])
def test_a_factory_may_add_tokens(name: str) -> None:
    report = dry_run_of(by_name()[name])
    assert [f.message for f in report.findings if f.severity != "info"] == [] and "shape-clash" in report.ran
    check = torch.distributions.constraints.positive_definite.check
    assert check(torch.eye(3)) and not check(-torch.eye(3))
