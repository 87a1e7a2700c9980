"""Default configurations made consistent with themselves, for sweeps over families and tests.

Never done to somebody's own configuration: there an inconsistency is a finding.
"""

from __future__ import annotations

from typing import Any

from vlmdoctor.targets.synthetic.fields import field, text_config, vision_config


def consistent(config: Any) -> Any:
    """`config`, changed in place where it contradicts itself."""
    text = text_config(config)
    vision = vision_config(config)
    _within_vocabulary(config, text)
    hidden = field(text, "hidden_size", "n_embd", "d_model")
    if hidden and vision is not config and not isinstance(vision, dict):
        kind = getattr(config, "model_type", "")
        if kind == "qwen2_vl":
            vision.hidden_size = hidden
        for name in ("out_hidden_size", "text_hidden_size"):
            if hasattr(vision, name):
                setattr(vision, name, hidden)
    return config


def _within_vocabulary(config: Any, text: Any) -> None:
    vocabulary = field(text, "vocab_size")
    if not vocabulary:
        return
    free = vocabulary - 1
    for part in (config,):
        for name, value in sorted(part.to_dict().items()):
            is_id = name.endswith(("token_id", "token_index", "patch_id"))
            if is_id and isinstance(value, int) and not isinstance(value, bool) and value >= vocabulary:
                setattr(part, name, free)
                free -= 1
