"""Reading files that may not be there, not be readable, or hold anything at all."""

from __future__ import annotations

import re
from pathlib import Path


def text(path: Path, limit: int = 1_000_000) -> str:
    """The file's text; empty where it can't be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(limit).decode("utf-8", errors="replace")
    except (OSError, ValueError):
        return ""


def matching(folder: Path, pattern: str) -> list[Path]:
    """The paths in a folder that match; empty where it can't be read."""
    try:
        return sorted(folder.glob(pattern))
    except (OSError, ValueError):
        return []


def exists(path: Path) -> bool:
    """Whether something is there, as far as it can be told."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare by: 410.129 is newer than 410.48.

    >>> numbers("2.13.0+cu130"), numbers("410.129") > numbers("410.48"), numbers("dev")
    ((2, 13, 0), True, ())
    """
    match = re.match(r"\d{1,9}(?:\.\d{1,9})*", version.strip())
    return tuple(int(part) for part in match[0].split(".")) if match else ()
