"""Terminal output compared with plain text files; VLMDOCTOR_UPDATE_SNAPSHOTS=1 writes them anew."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "snapshots"


def matches(name: str, text: str) -> bool:
    """Whether `text` is what the snapshot says; trailing blanks do not count."""
    text = "\n".join(line.rstrip() for line in text.splitlines()) + "\n"
    path = FOLDER / f"{name}.txt"
    if os.environ.get("VLMDOCTOR_UPDATE_SNAPSHOTS"):
        path.write_text(text, encoding="utf-8")
    wanted = path.read_text(encoding="utf-8")
    assert text == wanted
    return True
