"""Default configurations made consistent with themselves, for sweeps over families and tests.

Never done to the user's own configuration: there an inconsistency is a finding.
"""

from __future__ import annotations

from typing import Any

from vlmdoctor.knowledge.config_fields import field, text_config, vision_config


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
        if kind == "janus":
            vision.projection_dim = hidden
    for part in (config, field(config, "encoder")):
        if field(part, "mm_tokens_per_image") and field(part, "vision_config"):
            eyes = part.vision_config
            part.mm_tokens_per_image = (eyes.image_size // eyes.patch_size // 2) ** 2
    for part in (text, config):
        _sections(part)
    for name in ("image_token_id", "image_token_index", "video_token_index"):
        if hasattr(config, name) and getattr(config, name) is None:
            setattr(config, name, field(text, "vocab_size", default=2) - 1)
    return config


def _sections(text: Any) -> None:
    """mRoPE sections that add up to half of the rotated width."""
    rope = field(text, "rope_parameters", "rope_scaling")
    heads, hidden = field(text, "num_attention_heads"), field(text, "hidden_size")
    if not isinstance(rope, dict) or not rope.get("mrope_section") or not heads or not hidden:
        return
    rotated = int((field(text, "head_dim") or hidden // heads) * rope.get("partial_rotary_factor", 1.0))
    half, sections = rotated // 2, rope["mrope_section"]
    if sum(sections) != half:
        each = half // len(sections)
        rope["mrope_section"] = [half - each * (len(sections) - 1)] + [each] * (len(sections) - 1)


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
