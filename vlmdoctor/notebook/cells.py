"""The code of a notebook's cells: it lies in no file, and IPython knows which cell it is of."""

from __future__ import annotations

import linecache
import sys


def cell_of(file: str) -> str | None:
    """`Cell In[4]` for the name that the code of a cell has in place of a file; None for a file."""
    try:
        shell = sys.modules["IPython"].get_ipython()
        kind, name = shell.compile.format_code_name(file)
    except Exception:  # no IPython, no shell, or no cell
        return None
    return f"{kind} {name}" if kind == "Cell" else None


def cell_line(file: str, line: int) -> str | None:
    """The text of a line of a cell; None where that is not known."""
    return linecache.getline(file, line).strip() or None if cell_of(file) else None
