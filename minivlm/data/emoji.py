"""`emoji`: 200 named things, each drawn by three different hands.

Noto (Apache-2.0), Twemoji (CC BY 4.0) and Fluent (MIT), see assets/emoji.LICENSE.txt. Two styles are for
training; **the test set is in the third, Fluent, which is never seen**: its shaded, rounded look is the
farthest from the other two, so that an answer there can't come from remembered pixels.

    drawing RGBA [32, 32] -> scaled to 22..32 -> canvas [32, 32, 3] uint8 on a coloured background
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from minivlm.data.sample import Draws, Sample, Split, question, shuffled_range

ASSETS = Path(__file__).parent / "assets"
STYLES = ("noto", "twemoji", "fluent")
STYLES_OF_SPLIT: dict[Split, tuple[str, ...]] = {"train": ("noto", "twemoji"), "test": ("fluent",)}

SIZE = 32  # of a drawing in its sheet, and of the canvas
COLUMNS = 20  # of a sheet
SCALES = (22, 24, 26, 28, 30, 32)  # the sides at which a thing is drawn on the canvas
TINTS = (0.75, 1.0, 1.25)  # what a colour channel is multiplied by, in training only

QUESTIONS: dict[str, tuple[str, ...]] = {
    "name": ("what is this?", "name the thing in the image."),
    "kind": ("what kind of thing is this?",),
    "caption": ("describe the image.", "what do you see?"),
}
SHARES = {"name": 6, "kind": 2, "caption": 2}
"""How often each kind is asked, in tenths."""


@dataclass(frozen=True)
class Thing:
    """What is drawn: its code point as in the packages' file names, name ("owl"), phrase ("an owl"), kind."""

    code: str
    name: str
    phrase: str
    kind: str

    @property
    def caption(self) -> str:
        return f"a picture of {self.phrase}"


class Emoji:
    """A never-ending dataset: sample i is a pure function of (seed, split, i), for every i from 0 on.

    `len()` is what is called an epoch; indices beyond it give further samples.
    """

    name = "emoji"
    endless = True
    headline_kinds: tuple[str, ...] = ("name",)
    blocks: tuple[int, ...] = ()
    report: Any = None

    def __init__(self, split: Split = "train", seed: int = 0) -> None:
        self.split = split
        self.seed = int(seed)

    def __len__(self) -> int:
        return 32_768 if self.split == "train" else 4_096

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Sample:
        if i < 0:
            raise IndexError(f"samples are counted from 0, not {i}")
        draws = Draws("emoji", self.seed, self.split, int(i))
        return _sample(draws, self.split, draws.choice(_KINDS), draws.below(len(things())))

    def evaluation_set(self, n: int) -> list[Sample]:
        """`n` samples that are the same for every run and seed: all kinds equally often, all things too."""
        kinds, count = tuple(QUESTIONS), len(things())
        places = shuffled_range(n, "emoji order")
        samples: list[Sample] = [None] * n
        for i, place in enumerate(places):
            # A stride without a common factor visits all things, and neighbours in the table stay apart.
            number = (i // len(kinds) * 77) % count
            draws = Draws("emoji evaluation", self.split, i)
            samples[place] = _sample(draws, self.split, kinds[i % len(kinds)], number)
        return samples

    def contrastive_pair(self, i: int) -> tuple[np.ndarray, str, int]:
        """(image uint8 [32, 32, 3], caption, number of the thing): equal numbers mean the same thing."""
        draws = Draws("emoji pairs", self.seed, self.split, int(i))
        number = draws.below(len(things()))
        return _draw(draws, self.split, number), things()[number].caption, number


@cache
def things() -> tuple[Thing, ...]:
    """The 200 things in the order of the sheets."""
    lines = (ASSETS / "emoji.tsv").read_text(encoding="utf-8").splitlines()
    return tuple(Thing(*line.split("\t")) for line in lines[1:])


def texts() -> list[str]:
    """Every question and every answer that can occur, once each."""
    questions = [phrase for phrases in QUESTIONS.values() for phrase in phrases]
    answers = [text for thing in things() for text in (thing.name, thing.kind, thing.caption)]
    return list(dict.fromkeys(questions + answers))


def sheet_path(style: str) -> Path:
    return ASSETS / f"emoji-{style}.webp"


def read_drawings(style: str) -> np.ndarray:
    """All things in one style: uint8 [200, 32, 32, 4], RGBA, alpha not multiplied in."""
    from PIL import Image

    with Image.open(sheet_path(style)) as sheet:
        pixels = np.asarray(sheet.convert("RGBA"))
    rows = pixels.shape[0] // SIZE
    grid = pixels.reshape(rows, SIZE, COLUMNS, SIZE, 4).transpose(0, 2, 1, 3, 4)
    return grid.reshape(-1, SIZE, SIZE, 4)[: len(things())]


def _sample(draws: Draws, split: Split, kind: str, number: int) -> Sample:
    thing = things()[number]
    answer = {"name": thing.name, "kind": thing.kind, "caption": thing.caption}[kind]
    text = draws.choice(QUESTIONS[kind])
    return question(_draw(draws, split, number), text, answer, kind)


def _draw(draws: Draws, split: Split, number: int) -> np.ndarray:
    style = draws.choice(STYLES_OF_SPLIT[split])
    side = draws.choice(SCALES)
    colour, clear = _scaled(style)[side]
    x, y = draws.below(SIZE - side + 1), draws.below(SIZE - side + 1)
    flipped = draws.below(2)
    # Dark or pale, since few drawings are as a whole: nothing is camouflaged.
    darkest = draws.choice((0, 170))
    background = bytes(darkest + draws.below(86) for _ in range(3))

    # A byte string repeated is many times faster here than numpy's broadcast of three values.
    image = np.frombuffer(bytearray(background * (SIZE * SIZE)), np.uint8).reshape(SIZE, SIZE, 3)
    place = image[y : y + side, x : x + side]
    drawing = colour[number]
    if split == "train":
        # Another hand has other colours: what stays is the shape, and roughly the hue.
        tint = np.array((draws.choice(TINTS), draws.choice(TINTS), draws.choice(TINTS)), np.float32)
        drawing = np.minimum(drawing * tint, np.float32(255) - clear[number] * np.float32(255))
    blended = drawing + clear[number] * place
    place[...] = blended[:, ::-1] if flipped else blended
    return image


@cache
def _scaled(style: str) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """For each side: colour times opacity [200, side, side, 3] in 0..255, and 1 - opacity [..., 1] in 0..1.

    Both are float32.
    """
    drawings = read_drawings(style).astype(np.float32)
    # Colours are weighted with their opacity before they are mixed: what is invisible must not bleed in.
    opacity = drawings[..., 3:] / 255
    planes = np.concatenate([drawings[..., :3] * opacity, opacity], axis=-1)
    scaled = {}
    for side in SCALES:
        shrink = _area(SIZE, side)  # [side, 32]
        small = np.einsum("ya,xb,nabc->nyxc", shrink, shrink, planes, optimize=True).astype(np.float32)
        scaled[side] = (np.ascontiguousarray(small[..., :3]), np.ascontiguousarray(1 - small[..., 3:]))
    return scaled


def _area(size: int, target: int) -> np.ndarray:
    """The matrix [target, size] that shrinks a row of pixels by averaging what falls into each new one."""
    edges = np.arange(target + 1) * size / target
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.maximum(overlap, 0) * target / size).astype(np.float32)


_KINDS = tuple(kind for kind, share in SHARES.items() for _ in range(share))
