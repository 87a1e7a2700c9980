"""Changing one image, or one patch of it, and seeing which tokens of the text's embeddings move.

Shapes:
    N images, B rows, T tokens, D numbers in an embedding, P patches of all images, H height, W width
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.image_placement import ImagePlacement, PlacedImage
from vlmdoctor.probes.batch.fields import Inputs
from vlmdoctor.probes.forward import passed
from vlmdoctor.probes.images.features import entering
from vlmdoctor.probes.influence.passes import PassRunner
from vlmdoctor.sandbox.processes import communicates
from vlmdoctor.sandbox.restore import restoring
from vlmdoctor.subject import Subject

MOST_IMAGES = 8
FEWEST_TOKENS = 4  # of which a map can be made
SECONDS = 60.0  # no further image is tried after so long
SLOW = 5.0  # seconds for one pass: a dozen are needed
MOVED = 0.05  # of what the token moves that moves most
ALIKE = 1e-4  # of how far a token moves
_CHANNELS = (1, 3, 4)
_GRIDS = ("image_grid_thw", "grid_thw")

Moves = Callable[[Callable[[torch.Tensor], None]], torch.Tensor]


def probe(subject: Subject, gather: Callable[[type], Any]) -> ImagePlacement:
    """Runs the model about a dozen times up to its first decoder layer, and leaves it as it was."""
    passed(gather, finite=True)
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    with restoring(subject):
        return measure(subject)


@dataclass(frozen=True)
class _Picture:
    """One image of the batch: `pixels` of a copy of the batch's tensor is the part that belongs to it."""

    pixels: Callable[[torch.Tensor], torch.Tensor]
    grid: tuple[int, int] | None = None  # of its patches, where they are rows of a flat tensor


def measure(subject: Subject) -> ImagePlacement:
    """Use inside `restoring`."""
    trials = PassRunner(subject)
    trials.listens = False  # each pass ends before there is a loss
    inputs = trials.inputs
    if inputs.ids is None or inputs.reads_labels or len(inputs.images) != 1:
        raise Unavailable("the batch holds no images, or several kinds of them, beside token ids")
    name = inputs.images[0]
    pixels = inputs[name]
    if name in inputs.leaves and inputs.leaves[name].place is not None:
        raise Unavailable("the batch holds its images in lists")
    if not pixels.is_floating_point():
        raise Unavailable("the images are whole numbers")
    pictures = _pictures(inputs, pixels)
    started = time.perf_counter()
    layer, own = entering(trials)
    if (took := time.perf_counter() - started) > SLOW:
        raise Unavailable(f"a pass up to the first decoder layer takes {took:.0f} s here")

    def moves(change: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """[B, T, D]: how far the embeddings move with pixels that are changed like this."""
        changed = pixels.clone()
        change(changed)
        try:
            _, other = entering(trials, inputs.with_(**{name: changed}))
        except Unavailable:
            raise
        except Exception as error:
            raise Unavailable(f"with other pixels it raises {type(error).__name__}") from error
        if other.shape != own.shape:
            raise Unavailable("other pixels give a sequence of another length")
        return (other - own).float()

    again = moves(lambda changed: None)
    if bool(again.any()):
        raise Unavailable("two passes over the same batch differ: the model draws numbers of its own")
    landed: list[PlacedImage] = []
    mapped = equal = False
    for number, picture in enumerate(pictures[:MOST_IMAGES]):
        if time.perf_counter() - started > SECONDS:
            break
        if _is_blank(picture.pixels(pixels)):
            landed.append(PlacedImage(image=number, blank=True))  # a model may tell a stand-in by its pixels
            continue
        noise = partial(_noise_over, picture)
        apart = moves(noise)
        seen, places = _landed(number, apart)
        if not mapped and seen.row is not None:
            seen = _mapped(seen, picture, pixels, places, apart, moves)
            mapped = bool(seen.peaks)
        if seen.alike and not equal:
            with _unequal(trials.model):
                still = moves(noise) - moves(lambda changed: None)
            equal = not _landed(number, still)[0].alike
        if seen.alike:
            seen = replace(seen, identical=_copies(own[seen.row, places].float()) == seen.tokens)
        landed.append(seen)
    whole = pixels.ndim == 4 or pictures[0].grid is not None
    return ImagePlacement(module=layer, images=tuple(landed), whole=whole, equal_queries=equal)


def _pictures(inputs: Inputs, pixels: torch.Tensor) -> list[_Picture]:
    grids = next((inputs.fields[name] for name in _GRIDS if name in inputs.fields), None)
    if isinstance(grids, torch.Tensor):
        if grids.ndim != 2 or grids.shape[1] != 3 or int(grids.prod(dim=1).sum()) != len(pixels):
            raise Unavailable("the grids do not fit the pixels")
        found, start = [], 0
        for frames, height, width in grids.tolist():
            end = start + frames * height * width
            found.append(
                _Picture(
                    itemgetter(slice(start, end)),
                    (height, width) if frames == 1 else None,
                )
            )
            start = end
        return found
    if pixels.ndim < 4 or pixels.shape[-3] not in _CHANNELS:
        raise Unavailable("the pixels are not laid out as images")
    count = math.prod(pixels.shape[:-3])
    return [_Picture(partial(_image_at, i)) for i in range(count)]


def _image_at(number: int, pixels: torch.Tensor) -> torch.Tensor:
    return pixels.flatten(0, -4)[number]


def _landed(number: int, apart: torch.Tensor) -> tuple[PlacedImage, torch.Tensor]:
    """(what an image moves, [T] the places of its tokens in their row)."""
    far = apart.norm(dim=-1)
    moved = far > MOVED * far.max()
    rows = moved.any(dim=1).nonzero().flatten().tolist()
    if len(rows) != 1:
        return PlacedImage(image=number, tokens=int(moved.sum())), far.new_empty(0)
    places = moved[rows[0]].nonzero().flatten()
    return PlacedImage(
        image=number,
        blank=False,
        row=rows[0],
        first=int(places[0]),
        last=int(places[-1]),
        tokens=len(places),
        copies=_copies(apart[rows[0], places]),
    ), places


def _copies(vectors: torch.Tensor) -> int:
    """How many times over the [T, D] vectors are the same, block by block: T where all are alike."""
    for count in (len(vectors), *range(MOST_IMAGES, 1, -1)):
        if len(vectors) % count == 0:
            blocks = vectors.unflatten(0, (count, -1))
            if bool(((blocks - blocks[0]).norm(dim=-1) <= ALIKE * blocks[0].norm(dim=-1)).all()):
                return count
    return 1


@contextlib.contextmanager
def _unequal(model: torch.nn.Module) -> Iterator[None]:
    """The model with other values in parameters whose rows are all equal, as queries may be at first."""
    generator = torch.Generator().manual_seed(6)
    equal = [
        (parameter.data, parameter.data.clone())
        for parameter in model.parameters()
        if parameter.ndim > 1 and _rows_are_equal(parameter.data)
    ]
    for tensor, _ in equal:
        tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor))
    try:
        yield
    finally:
        for tensor, kept in equal:
            tensor.copy_(kept)


def _rows_are_equal(tensor: torch.Tensor) -> bool:
    first, second = (
        tensor[..., :1, :],
        tensor[..., 1:2, :],
    )  # the whole is compared only where these are equal
    return second.numel() > 0 and bool((first == second).all()) and bool((tensor == first).all())


def _mapped(
    seen: PlacedImage,
    picture: _Picture,
    pixels: torch.Tensor,
    places: torch.Tensor,
    apart: torch.Tensor,
    moves: Moves,
) -> PlacedImage:
    """`seen` with the tokens that some patches go to."""
    grid = _grid(picture, pixels, len(places))
    if grid is None or len(places) < FEWEST_TOKENS:
        return seen
    whole = apart[seen.row, places].norm(dim=-1)
    peaks = []
    for patch in _chosen(*grid):
        part = _part(picture, grid, patch)
        far = moves(partial(_noise_over, picture, part=part))
        # A token that moves far whatever is changed is not the one that the patch goes to.
        shares, tokens = (far[seen.row, places].norm(dim=-1) / whole).topk(2)
        peaks.append((patch, int(tokens[0]), float(shares[0] / shares[1].clamp(min=1e-9))))
    return replace(seen, grid=grid, peaks=tuple(peaks))


def _grid(picture: _Picture, pixels: torch.Tensor, tokens: int) -> tuple[int, int] | None:
    """Rows and columns of square parts of the image, one for each token."""
    if picture.grid is not None:
        height, width = picture.grid
        side = math.isqrt(height * width // tokens)
        fits = side and not height % side and not width % side
        return (height // side, width // side) if fits and height * width == tokens * side * side else None
    height, width = pixels.shape[-2:]
    rows = round(math.sqrt(tokens * height / width))
    if not rows or tokens % rows or tokens // rows != round(math.sqrt(tokens * width / height)):
        return None
    return rows, tokens // rows


def _chosen(rows: int, columns: int) -> list[int]:
    """Patches by which an order is recognised: corners, neighbours of theirs, and one inside."""
    count = rows * columns
    inside = rows // 2 * columns + columns // 3
    return sorted({0, 1, columns - 1, min(columns, count - 1), inside, count - columns, count - 2, count - 1})


def _part(picture: _Picture, grid: tuple[int, int], patch: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What cuts a patch out of the image's pixels."""
    rows, columns = grid
    if picture.grid is not None:
        size = picture.grid[0] * picture.grid[1] // (rows * columns)
        return lambda pixels: pixels[patch * size : (patch + 1) * size]

    def cut(pixels: torch.Tensor) -> torch.Tensor:
        height, width = pixels.shape[-2] // rows, pixels.shape[-1] // columns
        top, left = patch // columns * height, patch % columns * width
        return pixels[..., top : top + height, left : left + width]

    return cut


def _is_blank(pixels: torch.Tensor) -> bool:
    """Whether each channel has one value: padding, or a stand-in."""
    channels = pixels.flatten(-2) if pixels.ndim > 2 else pixels.flatten()[None]
    return not pixels.numel() or bool((channels == channels[..., :1]).all())


def _noise_over(
    picture: _Picture,
    pixels: torch.Tensor,
    part: Callable[[torch.Tensor], torch.Tensor] = lambda whole: whole,
) -> None:
    """Writes noise over a part of an image, as bright and as varied as the whole."""
    own = picture.pixels(pixels)
    drawn = torch.randn(own.shape, generator=torch.Generator().manual_seed(5)).to(own.device)
    noise = own.float().mean() + drawn * own.float().std().clamp(min=0.1)
    part(own).copy_(part(noise))
