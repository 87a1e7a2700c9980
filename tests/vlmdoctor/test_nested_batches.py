"""Images inside of a batch's parts: in a processor's output passed on whole, in lists, in lists of lists."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import pytest
import torch
from torch import nn

import vlmdoctor
from vlmdoctor.probes.batch.fields import Inputs, standard
from vlmdoctor.probes.batch.nested import image_leaves
from vlmdoctor.watching.batch import count_images

IMAGE = 60
FORMS = ("mapping", "class", "lists", "list")


class Nested(nn.Module):
    """A VLM of a few layers that takes its images in any of these forms."""

    def __init__(self, *, blind: bool = False) -> None:
        super().__init__()
        self.blind = blind
        self.emb = nn.Embedding(64, 32)
        self.vision = nn.Linear(64, 32)
        self.projector = nn.Linear(32, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 64)

    def forward(self, input_ids: torch.Tensor, images: Any, labels: torch.Tensor) -> Any:
        if hasattr(images, "keys"):
            pixels = images["pixel_values"]
        else:
            pixels = torch.stack([one[0] if isinstance(one, list) else one for one in images])
        patches = pixels.unfold(2, 8, 8).unfold(3, 8, 8).reshape(len(pixels), -1, 64)
        features = self.projector(self.vision(patches * (not self.blind)))
        x = self.emb(input_ids)
        x = x.masked_scatter((input_ids == IMAGE)[..., None].expand_as(x), features)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        logits = self.head(self.layers(x, mask=mask, is_causal=True))
        return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()), logits


def made(form: str, *, blind: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model = Nested(blind=blind)
    ids = torch.randint(0, 59, (4, 24))
    ids[:, 2:6] = IMAGE
    pixels = torch.randn(4, 1, 16, 16)
    images: Any = {
        "mapping": {"pixel_values": pixels},
        "class": UserDict({"pixel_values": pixels}),
        "lists": [[one] for one in pixels],
        "list": list(pixels),
    }[form]
    labels = ids.clone()
    labels[:, :8] = -100
    return model, {"input_ids": ids, "images": images, "labels": labels}


@pytest.mark.parametrize("form", FORMS)
def test_a_healthy_set_up_is_healthy_and_its_images_are_seen(form: str) -> None:
    report = vlmdoctor.check(*made(form))
    assert report.findings == ()
    assert {"image-without-effect", "pixels-not-usable"} <= set(report.ran)
    assert {one.topic: one.answered for one in report.coverage}["image use"]


@pytest.mark.parametrize("form", FORMS)
def test_images_without_effect_are_found(form: str) -> None:
    report = vlmdoctor.check(*made(form, blind=True), select=["image-without-effect"])
    assert [finding.rule for finding in report.findings] == ["image-without-effect"]


@pytest.mark.parametrize("form", FORMS)
def test_a_changed_batch_has_the_form_of_the_users(form: str) -> None:
    model, batch = made(form)
    inputs = Inputs(model, batch)
    before = [inputs[name].clone() for name in inputs.images]
    changed = inputs.with_(**{name: inputs[name] + 1 for name in inputs.images})
    assert type(changed["images"]) is type(batch["images"])
    others = image_leaves(changed)
    assert list(others) == inputs.images
    assert all(torch.equal(others[n].tensor, b + 1) for n, b in zip(inputs.images, before, strict=True))
    assert all(torch.equal(inputs[n], b) for n, b in zip(inputs.images, before, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_its_standard_form_has_all_images(form: str) -> None:
    model, batch = made(form)
    assert standard(model, batch)["pixel_values"].shape == (4, 1, 16, 16)


@pytest.mark.parametrize("form", FORMS)
def test_watching_counts_them(form: str) -> None:
    assert count_images((), made(form)[1]) == 4


def test_images_of_several_sizes_stay_apart() -> None:
    model, batch = made("list")
    batch["images"] = [torch.zeros(1, 8 * n, 8) for n in (1, 2, 3, 4)]
    found = standard(model, batch)["pixel_values"]
    assert [tuple(one.shape) for one in found] == [(1, 8, 8), (1, 16, 8), (1, 24, 8), (1, 32, 8)]


@pytest.mark.parametrize(
    "value",
    [
        [],
        {},
        None,
        "text",
        [1, 2],
        {"pixel_values": None},
        [[torch.arange(4)]],
        {"image_sizes": torch.ones(4, 2)},
        {"pixel_attention_mask": torch.ones(4, 8, 8)},
        [[[[[[torch.ones(1, 8, 8)]]]]]],
    ],
)
def test_what_are_no_images(value: Any) -> None:
    assert image_leaves({"images": value}) == {}
