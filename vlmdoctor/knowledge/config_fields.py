"""Reading sizes off a configuration, whatever a family calls them."""

from __future__ import annotations

from typing import Any


def field(config: Any, *names: str, default: Any = None) -> Any:
    """The first of `names` that `config` (an object or a mapping) holds and that is not None."""
    for name in names:
        try:
            value = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
        except RuntimeError:  # it differs between layers, and transformers refuses to name one
            continue
        if value is not None:
            return value
    return default


def kind_of(config: Any) -> str:
    """The model type, such as `qwen2_vl`."""
    return str(field(config, "model_type", default=""))


def side(config: Any, *names: str, default: int) -> int:
    """A size that may be given as one number or as height and width."""
    value = field(config, *names, default=default)
    if isinstance(value, list | tuple):
        value = value[0] if value else default
    return int(value)


def vision_config(config: Any) -> Any:
    """The part of a configuration that describes the eyes; the configuration itself where there is none."""
    inner = field(config, "thinker_config", "vlm_config")
    found = field(
        config,
        "vision_config",
        "vision_model_config",
        "encoder",
        "visual_config",
        "image_config",
        "vq_config",
    )
    if found is None:
        return config if inner is None else vision_config(inner)
    nested = None if isinstance(found, dict) else field(found, "vision_config", "sam_config")
    return found if nested is None else nested


_TEXT_OUTSIDE = ("llm_config", "language_config")  # names that transformers itself does not know


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the language model."""
    try:
        found = config.get_text_config()
    except (AttributeError, TypeError, ValueError):
        return field(config, "text_config", *_TEXT_OUTSIDE, "decoder", default=config)
    return field(config, *_TEXT_OUTSIDE, default=config) if found is config else found


POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len")
IMAGE_TOKEN = (
    "image_token_id",
    "image_token_index",
    "image_patch_id",
    "media_placeholder_token_id",
    "img_context_token_id",
    "image_token",
)


def image_token(config: Any) -> int | None:
    """The id that stands for one image feature in the text."""
    names = ("video_token_index",) if kind_of(config) == "instructblipvideo" else IMAGE_TOKEN
    found = field(config, *names, default=field(field(config, "vlm_config", default={}), *names))
    return int(found) if isinstance(found, int) and found >= 0 else None


_START_TOKENS = ("vision_start_token_id", "image_start_token_id", "boi_token_id", "boi_token_index")
_END_TOKENS = ("vision_end_token_id", "image_end_token_id", "eoi_token_id", "eoi_token_index")


def image_marks(config: Any) -> tuple[list[int], list[int]]:
    """The ids that stand in front of an image's placeholders and behind them, as far as they have rows."""
    rows = field(text_config(config), "vocab_size", default=0)
    marks = (field(config, *names) for names in (_START_TOKENS, _END_TOKENS))
    start, end = ([mark] if isinstance(mark, int) and 0 <= mark < rows else [] for mark in marks)
    return start, end


def special_tokens(config: Any) -> set[int]:
    """Ids with a meaning, which random text must not hold."""
    found = set()
    for part in (config, text_config(config)):
        values = part.to_dict() if hasattr(part, "to_dict") else {}
        found |= set((values.get("vocabulary_map") or {}).values())
        for name, value in values.items():
            if "token" in name or name.endswith("_id"):
                found |= {i for i in (value if isinstance(value, list) else [value]) if type(i) is int}
    return found
