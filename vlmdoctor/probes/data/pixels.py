"""The pixels of a batch, image by image, and which normalisation they went through.

Shapes:
    N images, C channels, H height, W width; Qwen's patches [P, C * T * p * p] are put together again
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from vlmdoctor.evidence.data import Picture

if TYPE_CHECKING:
    import torch

MOST_PICTURES = 32
MOST_ALONG_A_SIDE = 128  # pixels that are looked at to find the normalisation
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)
NONE = ((0.0,) * 3, (1.0,) * 3)
BYTES = ((0.0,) * 3, (1.0 / 255.0,) * 3)
KNOWN = {
    "CLIP's": CLIP,
    "ImageNet's": IMAGENET,
    "0.5 and 0.5": HALF,
    "none, from 0 to 1": NONE,
    "none, from 0 to 255": BYTES,
}
TOLERANCE = 0.02  # of a step of 1/255, after rounding in float32
Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


def images_of(batch: Mapping[str, Any], config: Any) -> list[torch.Tensor]:
    """The images as [C, H, W], in the order in which they stand in the batch; at most `MOST_PICTURES`."""
    pixels = batch.get("pixel_values")
    if isinstance(pixels, list | tuple):
        return [p for p in pixels if isinstance(p, torch.Tensor) and p.ndim == 3][:MOST_PICTURES]
    if not isinstance(pixels, torch.Tensor) or pixels.is_meta or not pixels.numel():
        return []
    if pixels.ndim == 2:
        return _from_patches(pixels, batch.get("image_grid_thw"), config)[:MOST_PICTURES]
    if pixels.ndim < 4 or pixels.shape[-3] not in (1, 3):
        return []
    flat = pixels.flatten(0, -4)
    padded = batch.get("pixel_attention_mask")
    if isinstance(padded, torch.Tensor) and padded.shape[: padded.ndim - 2] == pixels.shape[:-3]:
        flat = flat[padded.flatten(0, -3).flatten(1).any(1)]
    elif pixels.ndim > 4:
        # Rows with fewer images or tiles than others are filled up with zeros.
        flat = flat[flat.flatten(1).any(1)] if bool(flat.any()) else flat
    return list(flat[:MOST_PICTURES])


def _from_patches(pixels: torch.Tensor, grid: Any, config: Any) -> list[torch.Tensor]:
    """Qwen's flat patches as images: the first of the frames that a still image is repeated in."""
    vision = getattr(config, "vision_config", None)
    patch, merge = getattr(vision, "patch_size", None), getattr(vision, "spatial_merge_size", None)
    if grid is None or not isinstance(patch, int) or not isinstance(merge, int):
        return []
    frames, rest = divmod(pixels.shape[1], 3 * patch * patch)
    if rest or frames < 1:
        return []
    found: list[torch.Tensor] = []
    start = 0
    for t, h, w in grid.tolist():
        many = t * h * w
        block = pixels[start : start + many]
        start += many
        if len(block) < many or h % merge or w % merge:
            return found
        block = block[: h * w].reshape(h // merge, w // merge, merge, merge, 3, frames, patch, patch)[
            :, :, :, :, :, 0
        ]
        found.append(block.permute(4, 0, 2, 5, 1, 3, 6).reshape(3, h * patch, w * patch))
    return found


def normalisation_of(processor: Any) -> Normalisation | None:
    """The mean and standard deviation of the processor's images; None where it names none."""
    images = getattr(processor, "image_processor", processor)
    mean, std = getattr(images, "image_mean", None), getattr(images, "image_std", None)
    if getattr(images, "do_normalize", True) is False or mean is None or std is None:
        return None
    mean = [mean] * 3 if isinstance(mean, int | float) else list(mean)
    std = [std] * 3 if isinstance(std, int | float) else list(std)
    if len(mean) != len(std) or not all(std):
        return None
    return tuple(map(float, mean)), tuple(map(float, std))


def restored(image: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """The image with a normalisation undone: 0 is black and 1 is white."""
    mean, std = (image.new_tensor(values)[: image.shape[0], None, None] for values in normalisation)
    return image * std + mean


def picture_of(image: torch.Tensor, name: str, declared: Normalisation | None) -> Picture:
    """The facts of one image [C, H, W]."""
    exact = image.dtype == torch.float32 or not image.is_floating_point()  # bytes, as from a file
    image = image.detach().to("cpu", torch.float32)
    finite = torch.isfinite(image)
    if not bool(finite.any()):
        return Picture(name=name, low=0.0, high=0.0, finite=False)
    inside = image if bool(finite.all()) else torch.where(finite, image, image[finite].mean())
    flat = inside.flatten(1)
    constant = bool((flat == flat[:, :1]).all())
    low, high = float(inside.min()), float(inside.max())
    usable = declared if declared is not None and len(declared[0]) == image.shape[0] else None
    plain = restored(inside, usable) if usable is not None else None
    tried: dict[str, Normalisation] = dict(KNOWN) if image.shape[0] == 3 else {}
    if usable is not None:
        tried = {"declared": usable, **tried}
    fits: tuple[tuple[str, float], ...] = ()
    step = max(1, max(image.shape[-2:]) // MOST_ALONG_A_SIDE)
    if exact and not constant and bool(finite.all()) and max(abs(low), abs(high)) < 1000:
        fits = tuple((which, _fit(inside[:, ::step, ::step], values)) for which, values in tried.items())
    return Picture(
        name=name,
        low=low,
        high=high,
        finite=bool(finite.all()),
        constant=constant,
        restored_low=None if plain is None else float(plain.min()),
        restored_high=None if plain is None else float(plain.max()),
        fits=fits,
        contrast=float((flat.amax(dim=1) - flat.amin(dim=1)).max()),
    )


def _fit(image: torch.Tensor, normalisation: Normalisation) -> float:
    steps = restored(image.double(), normalisation) * 255.0
    inside = (steps > -0.5) & (steps < 255.5)
    return float((((steps - steps.round()).abs() < TOLERANCE) & inside).float().mean())
