"""Diagnostics for training vision-language models: before, during and after a run.

    report = vlmdoctor.check(model, batch, optimizer=optimizer)
    with vlmdoctor.watch(model, optimizer): ...

Importing this package imports none of torch, transformers or matplotlib, and changes nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Finding": "vlmdoctor.finding",
    "FindingsError": "vlmdoctor.errors",
    "Report": "vlmdoctor.report",
    "Severity": "vlmdoctor.finding",
    "Subject": "vlmdoctor.subject",
    "UserError": "vlmdoctor.errors",
    "check": "vlmdoctor.examine",
    "rule": "vlmdoctor.rulebook",
    "uses_images": "vlmdoctor.image_use.measure",
    "watch": "vlmdoctor.watching.watcher",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vlmdoctor' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    # Kept, so that the next look-up costs nothing.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
