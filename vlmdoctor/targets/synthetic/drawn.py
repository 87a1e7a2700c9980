"""Random pixels, and the sizes that they are drawn in."""

from __future__ import annotations

import math
from typing import Any

import torch

from vlmdoctor.knowledge.config_fields import field, side, vision_config

Inputs = dict[str, torch.Tensor]
# Pixels are real: a gigabyte of them is no batch that anybody means.
_MOST_NUMBERS = 1 << 28


def pixels(*shape: int) -> torch.Tensor:
    """Random pixels of `shape`, always the same.

    Raises:
        ValueError: They would be too many, or none.
    """
    if not 0 < math.prod(shape) <= _MOST_NUMBERS:
        raise ValueError(f"the images would have the shape {list(shape)}")
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def channels(config: Any) -> int:
    """Colours of an image."""
    return int(field(vision_config(config), "in_channels", "num_channels", "in_chans", default=3))


def image_side(config: Any, size: int | None, default: int = 224) -> int:
    """Height and width of an image: `size`, or what the configuration says."""
    vision = vision_config(config)
    return size or side(
        vision, "image_size", "resolution", default=side(config, "image_size", default=default)
    )


def places(rows: int, columns: int, indexing: str = "xy") -> torch.Tensor:
    """The coordinates of a grid's cells, row by row: [rows * columns, 2]."""
    axes = (columns, rows) if indexing == "xy" else (rows, columns)
    grids = torch.meshgrid(torch.arange(axes[0]), torch.arange(axes[1]), indexing=indexing)
    return torch.stack(grids, -1).reshape(-1, 2)
