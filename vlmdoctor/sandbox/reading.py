"""Reading files that may not be there, not be readable, or hold anything at all."""

from __future__ import annotations

from pathlib import Path

from vlmdoctor.notebook.cells import cell_line


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
    """Whether something is there, as far as that can be seen."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def source_line(file: str | None, line: int | None, most: int = 160) -> str | None:
    """The text of one line of a source file, without its indentation; None where it can't be read."""
    # A notebook's lines are of its cells, and not of the file.
    if file is None or not line or line < 1 or file.endswith(".ipynb"):
        return None
    if (found := cell_line(file, line)) is not None:
        return found[:most]
    path = Path(file)
    try:
        # A pipe or a device would wait, or never end.
        if not path.is_file():
            return None
    except (OSError, ValueError):
        return None
    lines = text(path).split("\n", line)
    return lines[line - 1].strip()[:most] or None if len(lines) >= line else None
