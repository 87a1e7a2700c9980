"""Batches made from a configuration alone, held against real steps of tiny models, family by family."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.detection.shrink import tiny_config, tiny_model
from vlmdoctor.dryrun.abstract import Abstract
from vlmdoctor.dryrun.meta_copy import meta_copy
from vlmdoctor.dryrun.step import dry_step
from vlmdoctor.dryrun.unknown import ValueUnknown
from vlmdoctor.errors import Unavailable
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.probes.dry_run.shapes import shapes_of
from vlmdoctor.targets.synthetic import batch_for, default_config

# One for each way of laying images out.
FAMILIES = (
    "fuyu",
    "gemma4",
    "granite_docling",
    "instructblip",
    "lfm2_vl",
    "llama4",
    "llava_next",
    "minicpmv4_6",
    "mistral3",
    "mllama",
    "qwen3_vl",
    "smolvlm",
)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_made_batch_runs_for_real_and_reaches_what_the_dry_run_says(family: str) -> None:
    config = tiny_config(family)
    model_class = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    model = tiny_model(model_class, config)
    batch = batch_for(model, batch_size=2)
    step = dry_step(meta_copy(model), batch, device="cpu")
    loss = model(**batch).loss
    loss.backward()
    assert step.error is None and torch.isfinite(loss)
    reached = {canonical_name(name) for name, p in model.named_parameters() if p.grad is not None}
    assert step.reached == reached


@pytest.mark.parametrize("family", ["blip", "udop", "pi0"])
def test_a_default_configuration_is_carried_at_its_full_size(family: str) -> None:
    config = default_config(family)
    model_class = transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    with torch.device("meta"):
        model = model_class._from_config(config)
    shapes = shapes_of(model, batch_for(model, batch_size=1), dtype=torch.bfloat16)
    assert shapes.failure is None and shapes.loss


def test_numbers_in_the_code_keep_their_values() -> None:
    activations = torch.empty(2, 3, device="meta")
    with Abstract():
        grid = torch.tensor([[1, 4, 4]], device=activations.device)
        same = activations.new_tensor([5], dtype=torch.long)
    assert grid.tolist() == [[1, 4, 4]] and same.tolist() == [5]


class Mixture(nn.Module):
    """Runs an expert only if a token chose it."""

    def __init__(self, experts: int = 4) -> None:
        super().__init__()
        self.first, self.router = nn.Linear(8, 8), nn.Linear(8, experts)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(experts))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        weight, chosen = self.router(x).softmax(-1).topk(2)
        out = torch.zeros_like(x)
        for number in nn.functional.one_hot(chosen, len(self.experts)).sum((0, 1)).nonzero().flatten():
            token, place = torch.where(chosen == number)
            out.index_add_(0, token, self.experts[int(number)](x[token]) * weight[token, place, None])
        return out.pow(2).sum()


def test_experts_are_assumed_to_be_chosen_as_often_only_where_that_is_needed() -> None:
    shapes = shapes_of(Mixture(), (torch.randn(6, 8),))
    assert shapes.spread and shapes.failure is None and not shapes.without_gradient
    rows = {module.name: module for module in shapes.modules}
    assert rows["experts.*"].shape_in == (3, 8)  # 6 tokens choose 2 of 4
    # As many operations as a real step: each choice is one row of one expert.
    with FlopCounterMode(display=False) as counted:
        Mixture()(torch.randn(6, 8)).backward()
    assert shapes.flops_forward + shapes.flops_backward == counted.get_total_flops()
    assert not shapes_of(nn.Sequential(nn.Linear(8, 8)), (torch.randn(6, 8),)).spread


def test_what_fails_only_under_the_assumption_is_told_as_not_carried() -> None:
    class Strict(Mixture):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            super().forward(x)
            raise ValueError("only under the assumption, for all that is known")

    with pytest.raises(Unavailable, match=r"can't carry aten\.nonzero"):
        shapes_of(Strict(), (torch.randn(6, 8),))


def test_a_number_in_a_tensor_fills_activations() -> None:
    scores = torch.empty(2, 3, device="meta")
    with Abstract():
        lowest = torch.scalar_tensor(float("-inf"), device=scores.device)
        masked = scores.masked_fill(torch.ones(2, 3) > 0, lowest)
        scores.masked_fill_(torch.ones(2, 3) > 0, lowest)
    assert masked.is_meta and masked.shape == (2, 3)


def test_a_tensor_filled_with_one_number_is_known_until_it_is_written_into() -> None:
    activations = torch.empty(2, 3, device="meta")
    with Abstract():
        assert torch.full_like(activations, True).bool().all()
        written = torch.zeros_like(activations)
        written.add_(activations)
        with pytest.raises(ValueUnknown):
            bool(written.bool().any())
        view = torch.ones_like(activations)
        view[0].mul_(activations[0])
        with pytest.raises(ValueUnknown):
            bool(view.bool().all())


def test_a_mask_that_learns_gets_its_gradient() -> None:
    class Relative(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Parameter(torch.zeros(1, 1, 4, 4))
            self.query = nn.Linear(8, 8, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.query(x)
            return nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=self.places).sum()

    for device in ("cpu", "cuda"):
        batch = {"x": torch.randn(1, 2, 4, 8)}
        step = dry_step(meta_copy(Relative()), batch, lambda model, batch: model(**batch), device=device)
        assert step.error is None and step.reached == {"places", "query.weight"}
