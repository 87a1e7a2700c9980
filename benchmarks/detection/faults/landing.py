"""Image features that go to the wrong tokens: one for all, in another order, at another image's places."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.detection.case import Made
from benchmarks.detection.faults.plant import alter, fault
from vlmdoctor.knowledge.config_fields import image_token

ROWS = 2  # of the batches, with an image each


@fault(
    "X-one-patch-for-all-tokens",
    families="llava paligemma idefics3 qwen2_5_vl internvl nanovlm hf_wrapper",
    rules="image-tokens-alike",
    at="layers blocks",
)
def one_patch_for_all_tokens(made: Made) -> None:
    """The features of the first patch are used for every token of the image."""
    alter(made["projector"], lambda x: _each(x, lambda image: image[:, :1].expand_as(image)))


@fault(
    "X-mean-of-patches-for-all-tokens",
    families="llava qwen3_vl nanogpt_images",
    rules="image-tokens-alike",
    at="layers transformer.h",
)
def mean_for_all_tokens(made: Made) -> None:
    """The mean of all patches is used for every token of the image."""
    alter(made["projector"], lambda x: _each(x, lambda image: image.mean(1, keepdim=True).expand_as(image)))


@fault(
    "X-patches-reversed",
    families="llava paligemma smolvlm qwen2_5_vl nanogpt_images",
    rules="image-tokens-reordered",
    at="layers transformer.h",
)
def patches_reversed(made: Made) -> None:
    """The tokens of an image stand from the last patch to the first."""
    alter(made["projector"], lambda x: _each(x, lambda image: image.flip(1)))


@fault(
    "X-patches-by-columns",
    families="llava internvl qwen2_vl nanovlm hf_wrapper",
    rules="image-tokens-reordered",
    at="layers blocks",
)
def patches_by_columns(made: Made) -> None:
    """Height and width of the grid are exchanged: the tokens stand column by column."""

    def columns(image: Tensor) -> Tensor:
        side = round(image.shape[1] ** 0.5)
        return image.unflatten(1, (side, side)).transpose(1, 2).flatten(1, 2)

    alter(made["projector"], lambda x: _each(x, columns))


@fault(
    "X-patches-shuffled",
    families="llava idefics3 qwen3_vl llava_scratch",
    rules="image-tokens-reordered",
    at="layers h",
)
def patches_shuffled(made: Made) -> None:
    """The tokens of an image stand in an order that is drawn at random."""

    def shuffled(image: Tensor) -> Tensor:
        return image[:, torch.randperm(image.shape[1], generator=torch.Generator().manual_seed(4))]

    alter(made["projector"], lambda x: _each(x, shuffled))


@fault(
    "B05-images-of-a-row-exchanged",
    families="llava internvl qwen2_5_vl paligemma",
    rules="images-swapped",
    at="layers",
)
def images_of_a_row_exchanged(made: Made) -> None:
    """Of two images in a row, each is seen where the other is meant."""
    _as_one_row(made)
    alter(made["projector"], lambda x: _each(x, lambda images: images.flip(0)))


@fault(
    "B05-first-image-of-a-row-for-both",
    families="llava internvl qwen2_5_vl",
    rules="images-swapped",
    at="layers",
)
def first_image_for_both(made: Made) -> None:
    """Of two images in a row, the first is seen at the places of both."""
    _as_one_row(made)
    alter(made["projector"], lambda x: _each(x, lambda images: images[:1].expand_as(images)))


def _as_one_row(made: Made) -> None:
    """Both samples as one, with an image in each half."""
    for name, value in made.batch.items():
        if value.shape == made.batch["labels"].shape and name != "labels":
            made.batch[name] = value.reshape(1, -1)
    made.batch["labels"] = made.batch["labels"].reshape(1, -1)


def _each(features: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`change` of the features as [images, tokens, D]; of lists of patches they are flat."""
    flat = features.ndim == 2
    images = features.unflatten(0, (ROWS, -1)) if flat else features
    changed = change(images)
    return changed.flatten(0, 1) if flat else changed


@fault(
    "B16-image-behind-the-answer", families="llava smolvlm internvl", rules="image-behind-answer", at="row"
)
def image_behind_the_answer(made: Made) -> None:
    """The placeholders of each row stand at its end, behind the answer."""
    ids = made.batch["input_ids"]
    order = (ids == image_token(made.model.config)).long().argsort(dim=1, stable=True)
    for name, value in made.batch.items():
        if value.shape == ids.shape:
            made.batch[name] = value.gather(1, order)


@fault(
    "X-pixels-viewed-not-transposed",
    families="llava internvl llava_scratch",
    rules="pixels-not-transposed",
    at="pixel_values images",
)
def pixels_viewed(made: Made) -> None:
    """Pixels that lie as height, width, channels are viewed as channels, height, width."""
    name = "images" if "images" in made.batch else "pixel_values"
    shape = made.batch[name].shape
    made.batch[name] = smooth(*shape).permute(0, 2, 3, 1).reshape(shape)


@fault(
    "X-grid-exchanged",
    families="qwen2_vl qwen2_5_vl qwen3_vl",
    rules="image-grid-transposed",
    at="image_grid_thw",
)
def grid_exchanged(made: Made) -> None:
    """Height and width of the images' grids are exchanged."""
    side, rows, columns = 8, 2, 8
    pixels = made.batch["pixel_values"]
    frames = pixels.shape[1] // (3 * side * side)
    pictures = smooth(ROWS, 3, rows * side, columns * side)
    blocks = pictures.reshape(ROWS, 3, 1, rows // 2, 2, side, columns // 2, 2, side)
    blocks = blocks.expand(-1, -1, frames, *blocks.shape[3:]).permute(0, 3, 6, 4, 7, 1, 2, 5, 8)
    made.batch["pixel_values"] = blocks.reshape(pixels.shape)
    made.batch["image_grid_thw"] = torch.tensor([[1, columns, rows]] * ROWS)


def smooth(images: int, channels: int, height: int, width: int) -> Tensor:
    """Pictures [images, channels, height, width] whose neighbouring pixels are alike."""
    phase = 6 * torch.rand(images, channels, 2, 1, 1, generator=torch.Generator().manual_seed(3))
    down, along = torch.meshgrid(torch.arange(height) / 8, torch.arange(width) / 8, indexing="ij")
    return torch.sin(along + phase[:, :, 0]) * torch.cos(1.3 * down + phase[:, :, 1])
