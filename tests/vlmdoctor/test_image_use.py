"""`vlmdoctor.uses_images`: the right, shuffled and blank images on a loader of one's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import vlmdoctor
from vlmdoctor.image_use.exchange import blank, shuffled
from vlmdoctor.image_use.result import ImageUse, Measured
from vlmdoctor.probes.batch.fields import Inputs

COLOURS = 6


class Namer(nn.Module):
    """Says which of a few colours a picture has; blind, or trained to look."""

    def __init__(self, *, blind: bool) -> None:
        super().__init__()
        self.blind = blind
        self.emb = nn.Embedding(16, 24)
        self.vision = nn.Linear(3, 24)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(24, 16)

    def forward(self, input_ids: torch.Tensor, pixel_values: Any, labels: torch.Tensor) -> Any:
        pixels = pixel_values["pixel_values"] if isinstance(pixel_values, dict) else pixel_values
        pixels = torch.stack([one[0] for one in pixels]) if isinstance(pixels, list) else pixels
        seen = self.vision(pixels.mean((-1, -2))) * (not self.blind)
        logits = self.head(self.dropout(torch.relu(self.emb(input_ids) + seen[:, None])))
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


def samples(count: int, form: str = "tensor", seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(0, COLOURS, (count,), generator=generator)
    table = torch.randn(COLOURS, 3, generator=torch.Generator().manual_seed(9))
    pixels = table[which][:, :, None, None].expand(-1, -1, 4, 4).contiguous()
    pixels = pixels + 0.01 * torch.randn(pixels.shape, generator=generator)
    ids = torch.stack([torch.tensor([1, 2, 3 + int(one)]) for one in which])
    labels = ids.clone()
    labels[:, :2] = -100
    forms: dict[str, Any] = {
        "tensor": pixels,
        "mapping": {"pixel_values": pixels},
        "lists": [[one] for one in pixels],
    }
    return {"input_ids": ids, "pixel_values": forms[form], "labels": labels}


def trained(*, blind: bool) -> Namer:
    torch.manual_seed(0)
    model = Namer(blind=blind)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for step in range(120):
        loss = model(**samples(32, seed=step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def looking() -> Namer:
    return trained(blind=False)


@pytest.fixture(scope="module")
def blinded() -> Namer:
    return trained(blind=True)


@pytest.mark.parametrize("form", ["tensor", "mapping", "lists"])
def test_a_model_that_uses_its_images(looking: Namer, form: str) -> None:
    use = vlmdoctor.uses_images(looking, [samples(16, form, seed=100 + i) for i in range(3)])
    assert use.uses_images is True
    assert use.samples == 48
    right, others, none = (use.of(kind) for kind in ("right", "shuffled", "blank"))
    assert right is not None and others is not None and none is not None
    assert right.accuracy is not None and others.accuracy is not None
    assert right.accuracy > 0.9 > others.accuracy + 0.2
    assert right.loss is not None and none.loss is not None and none.loss > 2 * right.loss
    assert str(use).startswith("It uses its images. 48 samples.\n  right     loss ")


@pytest.mark.parametrize("form", ["tensor", "mapping", "lists"])
def test_a_model_that_does_not(blinded: Namer, form: str) -> None:
    use = vlmdoctor.uses_images(blinded, [samples(16, form, seed=200 + i) for i in range(3)])
    assert use.uses_images is False
    assert use.sentence == "It does not use its images: others do as well."


def test_few_samples_say_nothing(looking: Namer) -> None:
    use = vlmdoctor.uses_images(looking, [samples(4)])
    assert use.uses_images is None
    assert "Too few samples" in use.sentence


def test_single_samples_are_compared_with_blank_images(looking: Namer) -> None:
    use = vlmdoctor.uses_images(looking, [samples(1, seed=i) for i in range(24)])
    assert use.not_tried == {"shuffled": "the batches hold one sample each; give larger ones"}
    assert [one.images for one in use.measured] == ["right", "blank"]
    assert use.uses_images is True


def test_nothing_is_left_behind(looking: Namer) -> None:
    looking.train()
    looking.head.eval()
    batches = [samples(8)]
    copies = {name: value.clone() for name, value in batches[0].items()}
    weights = {name: value.clone() for name, value in looking.state_dict().items()}
    state = torch.get_rng_state()
    vlmdoctor.uses_images(looking, batches)
    assert torch.equal(torch.get_rng_state(), state)
    assert looking.training and not looking.head.training
    assert all(torch.equal(value, looking.state_dict()[name]) for name, value in weights.items())
    assert not any(module._forward_hooks for module in looking.modules())
    assert all(torch.equal(value, batches[0][name]) for name, value in copies.items())


def test_a_loader_a_loss_and_a_metric_of_ones_own(looking: Namer) -> None:
    rows = [{name: value[0] for name, value in samples(1, seed=i).items()} for i in range(32)]
    loader = DataLoader(rows, batch_size=8, shuffle=True)

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        assert not model.training and not torch.is_grad_enabled()
        return model(**batch)["loss"] * 2

    def exact(model: nn.Module, batch: Any) -> torch.Tensor:
        logits = model(**batch)["logits"][:, 1]
        return (logits.argmax(-1) == batch["labels"][:, 2]).float()

    use = vlmdoctor.uses_images(looking, loader, loss_fn=loss_fn, metric=exact, batches=2)
    assert (use.samples, use.metric) == (16, "exact")
    assert use.uses_images is True
    assert "exact" in str(use)
    assert use.to_dict()["measured"][0]["images"] == "right"


def test_packed_images_are_exchanged_where_their_grids_are_equal() -> None:
    pixels = torch.arange(24.0).view(12, 2)
    grid = torch.tensor([[1, 2, 2]] * 3)
    batch = {"input_ids": torch.ones(3, 4, dtype=torch.long), "pixel_values": pixels, "image_grid_thw": grid}
    changed = shuffled(Inputs(nn.Module(), batch), 3)["pixel_values"]
    assert torch.equal(changed, torch.cat([pixels[4:], pixels[:4]]))
    batch["image_grid_thw"] = torch.tensor([[1, 2, 2], [1, 1, 4], [1, 2, 2]])
    from vlmdoctor.errors import Unavailable

    with pytest.raises(Unavailable, match="different sizes"):
        shuffled(Inputs(nn.Module(), batch), 3)


def test_an_image_that_is_not_there_stays_so() -> None:
    batch = samples(3)
    batch["pixel_values"][1] = 0
    pixels = blank(Inputs(nn.Module(), batch))["pixel_values"]
    assert not pixels[1].any()
    assert pixels[0].unique().numel() == 1 and bool(pixels[0].any())


def test_the_plot_has_a_bar_for_each_kind(looking: Namer) -> None:
    use = vlmdoctor.uses_images(looking, [samples(16)])
    figure = use.plot()
    assert [len(axes.patches) for axes in figure.axes] == [3, 3]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((3, []), "needs a torch.nn.Module, not int"),
        ((Namer(blind=True), []), "the loader gives no batch"),
        ((Namer(blind=True), 3), "needs batches to go through, not int"),
        ((Namer(blind=True), [{"input_ids": torch.ones(2, 3, dtype=torch.long)}]), "hold no images"),
    ],
)
def test_bad_use_is_one_sentence(arguments: Any, sentence: str) -> None:
    with pytest.raises(vlmdoctor.UserError, match=sentence):
        vlmdoctor.uses_images(*arguments)
    with pytest.raises(vlmdoctor.UserError, match="metric returned an object of type str"):
        vlmdoctor.uses_images(Namer(blind=True), [samples(2)], metric=lambda model, batch: "good")


def test_what_is_within_the_error_is_not_certain() -> None:
    def use(loss: float, error: float) -> ImageUse:
        right = Measured(images="right", loss=1.0, accuracy=None)
        other = Measured(images="shuffled", loss=loss, accuracy=None, loss_error=error)
        return ImageUse(measured=(right, other), samples=100)

    assert use(1.5, 0.01).uses_images is True
    assert use(1.0, 0.001).uses_images is False
    assert use(0.9, 0.01).uses_images is False
    assert use(0.9, 0.5).uses_images is None
    assert use(1.1, 0.05).uses_images is None


def test_a_model_that_answers_nothing_right_does_not_use_its_images_yet() -> None:
    right = Measured(images="right", loss=5.7, accuracy=0.0)
    blank = Measured(images="blank", loss=5.7, accuracy=0.0, loss_error=0.001, accuracy_error=0.0)
    use = ImageUse(measured=(right, blank), samples=64)
    assert use.uses_images is False
    assert use.sentence == "It does not use its images yet: no answer is right, with these images or others."
    assert repr(use) == f"<ImageUse: {use.sentence} 64 samples.>"
