"""Files of the user's in front of packages that vlmdoctor needs: `torch.py` in the current folder."""

from __future__ import annotations

import sys
import sysconfig
from importlib.machinery import PathFinder
from pathlib import Path

NEEDED = (
    *("torch", "numpy", "transformers", "PIL", "rich", "typer", "click", "matplotlib", "pandas", "packaging"),
    *(
        "pynvml",
        "safetensors",
        "tokenizers",
        "huggingface_hub",
        "yaml",
        "jinja2",
        "regex",
        "requests",
        "tqdm",
    ),
)


def shadowing() -> Path | None:
    """The first such file or folder; None where there is none.

    Packages are looked for as an import would, and a place outside of the installed ones, beside which there
    is one of the same name, is taken for the user's own.
    """
    installed = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    # A module that was loaded from the folder of a target is known by where it came from.
    for name in NEEDED:
        loaded = getattr(sys.modules.get(name), "__file__", None)
        for origin in (loaded, _origin(name, sys.path)):
            if origin is None or any(_within(origin, place) for place in installed):
                continue
            if _origin(name, installed) is not None:
                return Path(origin)
    return None


def _origin(name: str, path: list[str]) -> str | None:
    try:
        found = PathFinder.find_spec(name, path)
    except (ImportError, ValueError, OSError):
        return None
    return found.origin if found is not None else None


def _within(file: str, folder: str) -> bool:
    try:
        return Path(file).resolve().is_relative_to(Path(folder).resolve())
    except (OSError, ValueError, RuntimeError):
        return True
