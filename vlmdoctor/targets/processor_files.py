"""The size of images that a checkpoint's processor makes, read from its files; no code of it is run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmdoctor.boundary import Unreadable, read_json

FILES = ("preprocessor_config.json", "processor_config.json")
_LARGEST = 1 << 14
_MOST_BYTES = 1 << 20


def image_side(folder: Path) -> tuple[int, str] | None:
    """(pixels of an image's side, the file that says it); None where none says one size for all images."""
    for name in FILES:
        values = _read(folder / name)
        # Newer processors keep the settings of images under a name of their own.
        for settings in (values.get("image_processor"), values):
            if isinstance(settings, Mapping) and (side := _side(settings)) is not None:
                return side, name
    return None


def _read(file: Path) -> Mapping[str, Any]:
    try:
        values = read_json(file, _MOST_BYTES)
    except Unreadable:
        return {}
    return values if isinstance(values, Mapping) else {}


def _side(settings: Mapping[str, Any]) -> int | None:
    cropped = settings.get("do_center_crop") and settings.get("crop_size")
    if not cropped and settings.get("do_resize") is False:
        return None
    size = settings.get("crop_size" if cropped else "size")
    if isinstance(size, Mapping):
        # The edges of other processors bound images of many sizes.
        size = size.get("height") if size.get("height") == size.get("width") else None
    return size if type(size) is int and 0 < size <= _LARGEST else None
