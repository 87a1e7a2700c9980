"""Makes the embedded images again from where they come from.

    python -m minivlm.data.make_assets digits
    python -m minivlm.data.make_assets emoji NODE_MODULES

`digits` needs scikit-learn, which ships the scans. `emoji` needs a folder in which `npm install
emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 @lobehub/fluent-emoji-3d@1.1.0` was run: give
its `node_modules`. Neither is needed to use the data. Both write into `minivlm/data/assets/`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from minivlm.data.digits import ASSET as DIGITS_ASSET
from minivlm.data.digits import SCANS_PER_DIGIT, SHEET_COLUMNS
from minivlm.data.emoji import COLUMNS, SIZE, STYLES, sheet_path, things
from minivlm.errors import UserError

GREY_STEP = 15  # the scans have the values 0 to 16; times 15 they fill 0 to 240, so that people can see them


def make_digits() -> Path:
    """One grey PNG with all scans in order of their digit, in reading order, `SHEET_COLUMNS` to a row."""
    from sklearn.datasets import load_digits  # only here: it's no dependency of the package

    scans, digits = load_digits(return_X_y=True)
    counts = tuple(int(n) for n in np.bincount(digits, minlength=10))
    if counts != SCANS_PER_DIGIT:
        raise UserError(f"these are other scans than expected: {counts} per digit, not {SCANS_PER_DIGIT}")
    ordered = scans[np.argsort(digits, kind="stable")].astype(np.uint8).reshape(-1, 8, 8)
    rows = -(-len(ordered) // SHEET_COLUMNS)
    grid = np.zeros((rows * SHEET_COLUMNS, 8, 8), np.uint8)
    grid[: len(ordered)] = ordered
    sheet = grid.reshape(rows, SHEET_COLUMNS, 8, 8).transpose(0, 2, 1, 3).reshape(rows * 8, SHEET_COLUMNS * 8)
    Image.fromarray(sheet * GREY_STEP).save(DIGITS_ASSET, optimize=True)
    return DIGITS_ASSET


def make_emoji(node_modules: Path) -> list[Path]:
    """One lossless WebP sheet per style, `COLUMNS` to a row, in the order of `emoji.tsv`."""
    made = []
    for style in STYLES:
        codes = [thing.code for thing in things()]
        rows = -(-len(codes) // COLUMNS)
        sheet = Image.new("RGBA", (COLUMNS * SIZE, rows * SIZE))
        for i, code in enumerate(codes):
            with Image.open(_drawing(node_modules, style, code)) as drawing:
                small = drawing.convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            sheet.paste(small, (i % COLUMNS * SIZE, i // COLUMNS * SIZE))
        sheet.save(sheet_path(style), lossless=True, quality=100, method=6)
        made.append(sheet_path(style))
    return made


def _drawing(node_modules: Path, style: str, code: str) -> Path:
    if style == "fluent":
        folder, suffix = node_modules / "@lobehub/fluent-emoji-3d/assets", ".webp"
    else:
        package = {"noto": "google", "twemoji": "twitter"}[style]
        folder, suffix = node_modules / f"emoji-datasource-{package}/img/{package}/64", ".png"
    # The packages disagree on whether the "show as a picture" mark belongs to a file's name.
    for name in (code, code.removesuffix("-fe0f")):
        path = folder / f"{name}{suffix}"
        if path.is_file():
            return path
    raise UserError(f"no drawing of {code} under {folder}: is that where the three packages were installed?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=["digits", "emoji"])
    parser.add_argument("node_modules", nargs="?", type=Path)
    arguments = parser.parse_args()
    try:
        if arguments.what == "digits":
            made = [make_digits()]
        elif arguments.node_modules is None:
            raise UserError("emoji needs the node_modules folder that holds the three packages")
        else:
            made = make_emoji(arguments.node_modules)
    except UserError as error:
        parser.error(str(error))
    for path in made:
        print(f"{path}  {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
