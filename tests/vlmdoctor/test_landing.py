"""Where patches and images land in the text: by columns, in reverse, one for all, or nowhere to be told."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import vlmdoctor
from benchmarks.detection.case import Made
from benchmarks.detection.corpus import by_name
from benchmarks.detection.faults.plant import alter
from benchmarks.detection.models import make
from vlmdoctor.evidence.image_placement import ImagePlacement
from vlmdoctor.probes.images.placement import measure
from vlmdoctor.sandbox.restore import restoring

RULES = ["IMG343", "IMG344", "IMG345"]
HEALTHY = [
    "vlm/blip-2",  # queries that are all equal at first
    "vlm/chameleon",
    "vlm/gemma3",
    "vlm/kosmos-2",
    "vlm/llava_next",
    "vlm/mllama",
    "vlm/qwen2_5_vl",  # windows that are put back in order
    "vlm/llama4",
    "variant/a-row-without-an-image/smolvlm",
    "variant/two-images-in-a-row/llava",
    "variant/two-images-in-a-row/qwen3_vl",
    "handwritten/qformer",
    "minivlm/tiny",
]
FAULTS = [
    "X-one-patch-for-all-tokens/idefics3",
    "X-one-patch-for-all-tokens/internvl",  # whose position embeddings are all equal at first
    "X-mean-of-patches-for-all-tokens/nanogpt_images",
    "X-patches-reversed/qwen2_5_vl",
    "X-patches-by-columns/llava",
    "X-patches-shuffled/llava_scratch",
    "B05-images-of-a-row-exchanged/qwen2_5_vl",
    "B05-first-image-of-a-row-for-both/internvl",
]
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def checked(subject: Any) -> Any:
    report = vlmdoctor.check(subject, select=RULES)
    assert report.crashed == ()
    return report


def landing(made: Made) -> ImagePlacement:
    with restoring(made.model):
        return measure(made.subject())


@pytest.mark.parametrize("name", HEALTHY)
def test_features_in_their_places_are_left_alone(name: str) -> None:
    assert checked(by_name()[name].make()).findings == ()


@pytest.mark.parametrize("name", FAULTS)
def test_features_in_other_places_are_found(name: str) -> None:
    case = by_name()[name]
    found = checked(case.make()).findings
    assert [finding.rule for finding in found] == list(case.rules)


def wide(family: str) -> Made:
    """With images twice as wide as high, which take places row by row."""
    made = make(family)
    made.batch["pixel_values"] = torch.randn(2, 3, 16, 64, generator=torch.Generator().manual_seed(2))
    if "image_sizes" in made.batch:
        made.batch["image_sizes"] = torch.tensor([[16, 64]] * 2)
    return made


def test_a_grid_that_is_not_square_is_followed_row_by_row() -> None:
    made = wide("mistral3")
    (one, _) = landing(made).images
    assert one.grid == (1, 4)
    assert [token for _, token, _ in one.peaks] == [patch for patch, _, _ in one.peaks]


def test_a_grid_in_flat_patches_may_be_exchanged_too() -> None:
    made = make("qwen2_vl")
    made.batch["image_grid_thw"] = torch.tensor([[1, 2, 8]] * 2)
    assert checked(made.subject()).findings == ()
    alter(made["projector"], lambda x: x.unflatten(0, (2, 1, 4)).flip(2).flatten(0, 2))
    (finding,) = checked(made.subject()).findings
    assert "in reverse" in finding.message


def test_one_pooled_vector_with_offsets_is_only_warned_of() -> None:
    made = make("llava")
    offsets = torch.randn(16, 64)
    alter(made["projector"], lambda x: x.mean(1, keepdim=True) + offsets)
    (finding,) = checked(made.subject()).findings
    assert (finding.rule, str(finding.severity)) == ("image-tokens-alike", "warning")


def test_pooled_features_have_no_map() -> None:
    made = make("llava")
    mix = nn.Linear(16, 16, bias=False)
    alter(made["projector"], lambda x: mix(x.transpose(1, 2)).transpose(1, 2))
    assert checked(made.subject()).findings == ()


def test_a_stand_in_need_not_be_seen() -> None:
    made = make("llava")
    made.batch = {name: value[:1] for name, value in made.batch.items()} | {
        "pixel_values": made.batch["pixel_values"]
    }
    blank = torch.zeros_like(made.batch["pixel_values"][:1]) - torch.arange(3.0)[:, None, None]
    made.batch["pixel_values"] = torch.cat([made.batch["pixel_values"][:1], blank])
    alter(made["projector"], lambda x: x[:1])
    assert [one.blank for one in landing(made).images] == [False, True]
    assert checked(made.subject()).findings == ()


def test_it_leaves_no_trace() -> None:
    made = make("blip-2")
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    assert landing(made).equal_queries
    assert all(torch.equal(before[name], value) for name, value in made.model.state_dict().items())
