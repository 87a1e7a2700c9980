"""A small vision-language model and its trainer: an image encoder, a projector and a decoder.

    model, processor = minivlm.build("tiny", seed=0)

Importing this package imports neither torch nor transformers, and changes nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "MiniVLMConfig": "minivlm.config",
    "MiniVLMForConditionalGeneration": "minivlm.model",
    "MiniVLMProcessor": "minivlm.processor",
    "PRESETS": "minivlm.presets",
    "TrainConfig": "minivlm.train_config",
    "UserError": "minivlm.errors",
    "build": "minivlm.factory",
    "load": "minivlm.factory",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'minivlm' has no attribute '{name}'")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
