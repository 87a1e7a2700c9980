"""Output formats: one module each, with `render(report, *, color, verbose, width) -> str`.

They are found by their file names.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

from vlmdoctor.errors import UserError

# Parts of a report that have files of their own.
NOT_FORMATS = {"card", "page_parts", "dry_run", "machine", "module_table"}


def names() -> list[str]:
    """The output formats that there are."""
    return sorted(info.name for info in pkgutil.iter_modules(__path__) if info.name not in NOT_FORMATS)


def reporter(name: str) -> Any:
    """The module of an output format; raises `UserError` for an unknown one."""
    if name not in names():
        raise UserError(f"there is no output format '{name}'; choose one of {', '.join(names())}.")
    return importlib.import_module(f"{__name__}.{name}")
