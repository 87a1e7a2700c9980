"""What a callback says while another library's progress bar is on the screen."""

from __future__ import annotations

import contextlib
import os
import sys

from vlmdoctor.plain_text import without_commands


def say(text: str) -> None:
    """Prints lines on standard error, each with a prefix, above a progress bar if one is drawn.

    It never raises: a closed stream is no reason to end a training run.
    """
    prefix = _prefix()
    lines = without_commands("\n".join(f"{prefix}{line}".rstrip() for line in text.splitlines()))
    # Only where the library is loaded can there be a bar, and only it knows how to print above it.
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)
    with contextlib.suppress(Exception):
        if tqdm is not None:
            tqdm.write(lines, file=sys.stderr)
        else:
            print(lines, file=sys.stderr, flush=True)


def _prefix() -> str:
    """`vlmdoctor | `, with the rank where there are several."""
    several = os.environ.get("WORLD_SIZE", "1").strip() not in ("", "1")
    rank = os.environ.get("RANK", "").strip()
    return f"vlmdoctor rank {rank} | " if several and rank.isdigit() else "vlmdoctor | "
