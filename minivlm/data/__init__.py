"""Data: two built-in sets with their images embedded (`digits`, `emoji`), and the user's own.

For one seed, what is read at which step is always the same:

    dataset = load_data("digits", "train", seed=0)
    stream = IndexStream.over(dataset, seed=0, batch_size=32)
    for indices in stream:
        batch = collator([dataset[i] for i in indices])
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "Collator": "collate",
    "IndexStream": "stream",
    "Sample": "sample",
    "corpus_texts": "load",
    "load_data": "load",
    "order": "stream",
    "pack": "collate",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    # Lazy, so that looking at names and presets costs no import of numpy and torch.
    if name in _HOME:
        return getattr(importlib.import_module(f"minivlm.data.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
