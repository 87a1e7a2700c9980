"""`digits`: two handwritten digits in one picture, and questions about them.

The handwriting is real: 1,797 scans of 8x8 pixels from the optical recognition set of the UCI machine
learning repository (see assets/digits.LICENSE.txt). The split is by scan: no scan of the test set is ever
trained on. Left and right digit are drawn independently, so that guessing without looking gets one in ten
of the left and right questions, and one in a hundred of those that ask for both.

    scan [8, 8] 0..240 -> coverage [15, 15, 1] 0..1 -> canvas [32, 32, 3] uint8, a scan in each half
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minivlm.data.sample import Draws, Sample, Split, question, shuffled_range

if TYPE_CHECKING:
    from minivlm.data.sample import Image

ASSET = Path(__file__).parent / "assets" / "digits.png"
SCANS_PER_DIGIT = (178, 182, 177, 183, 181, 182, 181, 179, 174, 180)
SHEET_COLUMNS = 45
GREY_OF_INK = 240  # the sheet's value of a fully inked pixel
TEST_SHARE = 5  # one scan in five is kept for the test

CANVAS = 32
SIDE = 15  # of a scan on the canvas
MOVES = 2, 3
"""How many places a scan can have in its half, across and down. The harder it is to find, the later a small
model begins to look at the image at all: after 600 steps `tiny` read 77 % exactly, and 32 % with scans of 14
pixels in 3 x 5 places."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (235, 60, 55),
    "green": (70, 200, 75),
    "blue": (75, 125, 255),
    "yellow": (245, 215, 50),
    "pink": (250, 120, 205),
    "white": (240, 240, 240),
}
BACKGROUNDS = ((0, 0, 0), (40, 40, 44), (22, 24, 60), (48, 20, 36), (18, 46, 30), (52, 40, 16))

QUESTIONS: dict[str, tuple[str, ...]] = {
    "left": ("what digit is on the left?", "read the left digit."),
    "right": ("what digit is on the right?", "read the right digit."),
    "both": ("read both digits.", "what digits are these?"),
    "sum": ("what is the sum of the digits?", "add the two digits."),
    "colour": ("what colour is the {side} digit?", "which colour has the {side} digit?"),
    "caption": ("describe the image.", "what do you see?"),
}
SHARES = {"left": 5, "right": 5, "both": 5, "sum": 1, "colour": 2, "caption": 2}
"""How often each kind is asked, in twentieths; reading the digits is what training is judged by."""


class Digits:
    """A never-ending dataset: sample i is a pure function of (seed, split, i), for every i from 0 on.

    `len()` is what is called an epoch; indices beyond it give further samples that were never seen before.
    """

    name = "digits"
    endless = True
    headline_kinds: tuple[str, ...] = ("left", "right", "both")
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
        draws = Draws("digits", self.seed, self.split, int(i))
        return _sample(draws, self.split, draws.choice(_KINDS), draws.below(10), draws.below(10))

    def evaluation_set(self, n: int) -> list[Sample]:
        """`n` samples that are the same for every run and seed: all kinds equally often, all digits too."""
        kinds = tuple(QUESTIONS)
        places = shuffled_range(n, "digits order")
        samples: list[Sample] = [None] * n
        for i, place in enumerate(places):
            # Within a kind, 10 x 10 pairs of digits in turn: left and right stay independent of each other.
            kind, pair = kinds[i % len(kinds)], (i // len(kinds) * 37) % 100
            draws = Draws("digits evaluation", self.split, i)
            samples[place] = _sample(draws, self.split, kind, *divmod(pair, 10))
        return samples

    def contrastive_pair(self, i: int) -> tuple[Image, str, int]:
        """(image uint8 [32, 32, 3], caption, number of the caption): equal numbers mean the same caption."""
        draws = Draws("digits pairs", self.seed, self.split, int(i))
        left, right = draws.below(10), draws.below(10)
        sample = _sample(draws, self.split, "caption", left, right)
        text = sample.messages[-1]["content"]
        return sample.images[0], text, _captions()[text]


def texts() -> list[str]:
    """Every question and every answer that can occur, once each."""
    questions = [
        phrase.format(side=side)
        for phrases in QUESTIONS.values()
        for phrase in phrases
        for side in ("left", "right")
    ]
    answers = [f"{a} {b}" for a in range(10) for b in range(10)] + [str(n) for n in range(19)] + list(COLOURS)
    return list(dict.fromkeys(questions + answers + list(_captions())))


def caption(left_colour: str, left: int, right_colour: str, right: int) -> str:
    return f"a {left_colour} {left} left of a {right_colour} {right}"


@cache
def _captions() -> dict[str, int]:
    every = (caption(c, a, d, b) for c in COLOURS for a in range(10) for d in COLOURS for b in range(10))
    return {text: number for number, text in enumerate(every)}


def _sample(draws: Draws, split: Split, kind: str, left: int, right: int) -> Sample:
    colours = [draws.choice(_COLOUR_NAMES), draws.choice(_COLOUR_NAMES)]
    side = draws.below(2)
    text = draws.choice(QUESTIONS[kind])
    if kind == "left":
        answer = str(left)
    elif kind == "right":
        answer = str(right)
    elif kind == "both":
        answer = f"{left} {right}"
    elif kind == "sum":
        answer = str(left + right)
    elif kind == "colour":
        text, answer = text.format(side=("left", "right")[side]), colours[side]
    else:
        answer = caption(colours[0], left, colours[1], right)
    return question(_draw(draws, split, (left, right), colours), text, answer, kind)


def _draw(draws: Draws, split: Split, digits: tuple[int, int], colours: list[str]) -> np.ndarray:
    background = draws.choice(BACKGROUNDS)
    # A byte string repeated is many times faster here than numpy's broadcast of three values.
    image = np.frombuffer(bytearray(bytes(background) * (CANVAS * CANVAS)), np.uint8)
    image = image.reshape(CANVAS, CANVAS, 3)
    for half, digit, colour in zip((0, CANVAS // 2), digits, colours, strict=True):
        scans = _coverage(split)[digit]
        coverage = scans[draws.below(len(scans))]
        x = half + draws.below(MOVES[0])
        y = (CANVAS - SIDE) // 2 - 1 + draws.below(MOVES[1])
        image[y : y + SIDE, x : x + SIDE] = coverage * _INK[colour, background] + _FLOAT[background]
    return image


@cache
def _coverage(split: Split) -> tuple[np.ndarray, ...]:
    """For each digit, float32 [scans, 15, 15, 1]: how much of each canvas pixel is inked, 0..1."""
    scans = read_scans() / np.float32(GREY_OF_INK)  # [1797, 8, 8]
    enlarge = _bilinear(8, SIDE)  # [15, 8]
    large = (enlarge @ scans @ enlarge.T)[..., None].astype(np.float32)
    return tuple(large[indices] for indices in split_scans(split))


def read_scans() -> np.ndarray:
    """The scans in order of their digit: uint8 [1797, 8, 8], 0 (paper) to 240 (ink) in steps of 15."""
    from PIL import Image

    with Image.open(ASSET) as sheet:
        pixels = np.asarray(sheet)
    rows = pixels.shape[0] // 8
    grid = pixels.reshape(rows, 8, SHEET_COLUMNS, 8).transpose(0, 2, 1, 3).reshape(-1, 8, 8)
    return grid[: sum(SCANS_PER_DIGIT)]


def split_scans(split: Split) -> tuple[np.ndarray, ...]:
    """For each digit, which scans of `read_scans()` belong to the split: always the same ones."""
    chosen, start = [], 0
    for digit, count in enumerate(SCANS_PER_DIGIT):
        shuffled = shuffled_range(count, "digits split", digit)
        tests = round(count / TEST_SHARE)
        chosen.append(start + np.sort(shuffled[:tests] if split == "test" else shuffled[tests:]))
        start += count
    return tuple(chosen)


def _bilinear(size: int, target: int) -> np.ndarray:
    """The matrix [target, size] that enlarges a row of pixels by linear interpolation."""
    position = np.clip((np.arange(target) + 0.5) * size / target - 0.5, 0, size - 1)
    return np.maximum(0, 1 - np.abs(position[:, None] - np.arange(size))).astype(np.float32)


_KINDS = tuple(kind for kind, share in SHARES.items() for _ in range(share))
_COLOUR_NAMES = tuple(COLOURS)
_FLOAT = {background: np.array(background, np.float32) for background in BACKGROUNDS}
_INK = {
    (name, background): np.array(colour, np.float32) - _FLOAT[background]
    for name, colour in COLOURS.items()
    for background in BACKGROUNDS
}
