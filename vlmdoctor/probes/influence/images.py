"""Exchanging the images of a batch for noise: whose logits move, and whether any do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.influence import Change
from vlmdoctor.probes.images.path import image_path
from vlmdoctor.probes.influence.baseline import Baseline, change
from vlmdoctor.probes.influence.passes import distances
from vlmdoctor.probes.influence.tokens import Results

AWAKE = 0.1
_GRIDS = {"pixel_values": "image_grid_thw", "pixel_values_videos": "video_grid_thw"}


def exchange_an_image(reference: Baseline) -> Results:
    """The first sample's image becomes noise: its logits move, and no other sample's."""
    inputs = reference.inputs
    if not inputs.images:
        raise Unavailable("the batch holds no images")
    if reference.before.logits is None:
        yield "images", _images_by_loss(reference)
        raise Unavailable("no logits were found in the model's output, one row of them for each token")
    seen = _image_positions(reference)
    owned = _first_image(reference, seen)
    if owned is not None and len(reference.valid) > 1:
        apart = reference.moved(reference.trials.run(inputs.with_(**owned)))
        own = float(apart[0][(reference.valid if seen is None else reference.valid | seen)[0]].max())
        others = reference.valid.clone()
        others[0] = False
        most = max(own, float(apart[others].max()) if others.any() else 0.0)
        allowed, sees = reference.exact(most), own > reference.still(most)
        if reference.setting("expert_capacity") is not None:
            yield (
                "image-of-another",
                "experts of limited capacity make samples depend on each other by design",
            )
        else:
            yield "image-of-another", change("the image of row 0", apart, others, allowed, own, sees=sees)
    else:
        yield "image-of-another", "which image belongs to which sample is not known"
    changed = inputs.with_(**{name: noise_like(inputs[name]) for name in inputs.images})
    apart = reference.moved(reference.trials.run(changed))
    yield "images", _influence(reference, apart, seen, changed)


def noise_like(images: torch.Tensor) -> torch.Tensor:
    """Noise as bright and as varied as the images; what is empty (padding, a stand-in) stays empty."""
    generator = torch.Generator().manual_seed(2)
    drawn = torch.randn(images.shape, generator=generator).to(images.device, torch.float32)
    known = images.float()
    noise = known.mean() + drawn * known.std().clamp(min=1e-3)
    if not images.is_floating_point():
        noise = noise.clamp(0, 255)
    return torch.where(known == 0, known, noise).to(images.dtype)


def _image_positions(reference: Baseline) -> torch.Tensor | None:
    """[B, T]: where a placeholder of an image stands; None where they are not known."""
    if not reference.placeholders or reference.inputs.reads_labels:
        return None
    ids = reference.inputs[reference.inputs.ids].cpu()
    stands = torch.isin(ids, torch.tensor(sorted(reference.placeholders)))
    return stands if stands.any() else None


def _first_image(reference: Baseline, positions: torch.Tensor | None) -> dict[str, torch.Tensor] | None:
    """The images with the first sample's exchanged; None where it is not known which is whose."""
    inputs, rows = reference.inputs, len(reference.valid)
    if positions is not None and not bool(positions.any(dim=1).all()):
        return None
    changed = {}
    for name in inputs.images:
        images = inputs[name]
        leaf = inputs.leaves.get(name)
        if leaf is not None and leaf.place is not None:
            # A list with an entry for each row: the entry's images are the row's.
            if len(inputs.fields[leaf.part]) != rows or not bool(images.any()):
                return None
            if leaf.place == 0:
                changed[name] = noise_like(images)
            continue
        grid = inputs.fields.get(_GRIDS.get(name, ""))
        patches = grid.prod(dim=1) if isinstance(grid, torch.Tensor) else None
        if patches is not None and len(patches) == rows and int(patches.sum()) == len(images):
            count = int(patches[0])
        elif len(images) == rows:
            count = 1
        else:
            return None
        if not bool(images[:count].any()):
            return None
        changed[name] = torch.cat([noise_like(images[:count]), images[count:]])
    return changed or None


def _influence(
    reference: Baseline, apart: torch.Tensor, positions: torch.Tensor | None, changed: Any
) -> Change:
    inputs = reference.inputs
    if not any(bool((noise_like(inputs[n]) != inputs[n]).any()) for n in inputs.images):
        raise Unavailable("the images of this batch are empty")
    where = reference.valid
    anywhere = float(apart[where if positions is None else where | positions].max())
    text = where
    if positions is not None:
        # The text that stands behind an image, where the loss looks at it.
        text = where & (positions.cumsum(dim=1) > 0) & ~positions
        with contextlib.suppress(Unavailable):
            text = text & reference.predicting()
    elif reference.setting("image_token_id") is not None:
        raise Unavailable("the text holds no placeholder for an image")
    closed = None
    if float(apart[text].max() if text.any() else anywhere) <= reference.noise:
        closed = _closed_gate(reference, changed, text if text.any() else where)
    if closed is not None:
        raise Unavailable(f"the images' path starts closed: {closed} is zero")
    path = image_path(reference, changed) if anywhere <= reference.noise else {}
    return change("all images", apart, text if text.any() else where, reference.noise, anywhere, **path)


def _images_by_loss(reference: Baseline) -> Change:
    inputs, loss = reference.inputs, reference.before.loss
    if loss is None:
        raise Unavailable("the model gives neither a loss nor logits")
    changed = inputs.with_(**{name: noise_like(inputs[name]) for name in inputs.images})
    if not any(bool((noise_like(inputs[n]) != inputs[n]).any()) for n in inputs.images):
        raise Unavailable("the images of this batch are empty")
    other = reference.trials.run(changed).loss
    moved = abs(other - loss) if other is not None else float("inf")
    if moved <= reference.noise:
        with _awake(reference.trials.model) as woken:
            first, second = reference.trials.run().loss, reference.trials.run(changed).loss
        if woken and first != second:
            raise Unavailable(f"the images' path starts closed: {woken[0]} is zero")
    path = image_path(reference, changed) if moved <= reference.noise else {}
    return Change(
        what="all images", moved=moved, allowed=reference.noise, effect=moved, positions=1, detail=path
    )


def _closed_gate(reference: Baseline, changed: Any, where: torch.Tensor) -> str | None:
    """The parameter that is zero at first and lets nothing through until it has learned; else None."""
    with _awake(reference.trials.model) as woken:
        if not woken:
            return None
        one, other = reference.trials.run(), reference.trials.run(changed)
    if one.logits is None or other.logits is None or one.logits.shape != other.logits.shape:
        return None
    apart = distances(reference.text(one.logits), reference.text(other.logits)).cpu()
    return woken[0] if float(apart[where].max()) > reference.noise else None


@contextlib.contextmanager
def _awake(model: nn.Module) -> Iterator[list[str]]:
    """The model with every parameter that is wholly zero at a small value."""
    zero = [
        (name, p.data)
        for name, p in model.named_parameters()
        if p.is_floating_point() and p.numel() and not bool(p.detach().any())
    ]
    gates = [name for name, _ in zero if not name.endswith("bias")]
    for _, tensor in zero:
        tensor.fill_(AWAKE)
    try:
        yield gates or [name for name, _ in zero]
    finally:
        for _, tensor in zero:
            tensor.zero_()
