"""What a model and its tokenizer expect of the data, from configuration and shapes alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vlmdoctor import subject as subjects
from vlmdoctor.evidence.data import Words
from vlmdoctor.knowledge.config_fields import POSITIONS, text_config
from vlmdoctor.knowledge.named_parts import current

_IMAGE_KEYS = ("image_token_id", "image_token_index", "image_token_ids")
_MEDIA_KEYS = (*_IMAGE_KEYS, "video_token_id", "video_token_index", "audio_token_id", "audio_token_index")
_STRETCHING = ("yarn", "linear", "dynamic", "ntk", "longrope")
NO_LIMIT = 10**9

# Models that let the tokens of an image (or of a prefix) see each other in both directions, if these
# types tell them which they are.
BIDIRECTIONAL = {"gemma3": "token_type_ids", "paligemma": "token_type_ids"}
_CLASS_TOKEN = ("clip_vision_model", "clip")


def words_of(model: Any, tokenizer: Any, processor: Any, stop_text: str) -> Words:
    """The vocabulary as the embedding, the head, the configuration and the tokenizer have it."""
    config = getattr(model, "config", None)
    text = text_config(config)
    padding = _first_id(
        getattr(tokenizer, "pad_token_id", None), _get(config, "pad_token_id"), _get(text, "pad_token_id")
    )
    if padding is None and config is None:
        padding = _padding_inside(model)
    said = current()
    if padding is None:
        padding = said.padding_id
    eos = _ids(getattr(tokenizer, "eos_token_id", None))
    placeholder, placeholder_ids = _placeholder(tokenizer, processor)
    stops = _encoded(tokenizer, stop_text)[:1] if stop_text else ()
    generation = getattr(model, "generation_config", None)
    ends = (
        _ids(_get(generation, "eos_token_id"))
        or _ids(_get(config, "eos_token_id"))
        or _ids(_get(text, "eos_token_id"))
    )
    image_ids = media_ids(config, processor)
    if said.image_token_id is not None and said.image_token_id not in image_ids:
        image_ids = (said.image_token_id,)
    if not image_ids and len(placeholder_ids) == 1:
        image_ids = placeholder_ids
    stops = stops or eos[:1]
    start = _first_id(
        getattr(tokenizer, "bos_token_id", None), _get(config, "bos_token_id"), _get(text, "bos_token_id")
    )
    named = {*image_ids, *placeholder_ids, *stops, *eos, *ends, *(() if padding is None else (padding,))}
    return Words(
        embedding_rows=embedding_rows(model),
        head_rows=None if model is None else subjects.vocab_size(model),
        tokenizer_size=_size(tokenizer),
        placeholder=placeholder,
        placeholder_ids=placeholder_ids,
        image_ids=image_ids,
        padding_id=padding,
        start_id=start,
        stop_ids=stops,
        eos_ids=ends,
        pad_is_eos=padding is not None and padding in eos,
        unknown_id=_first_id(getattr(tokenizer, "unk_token_id", None)),
        max_positions=max_positions(text),
        names=tuple((i, name) for i in sorted(named) if (name := _name(tokenizer, i)) is not None),
    )


def _size(tokenizer: Any) -> int | None:
    """How many tokens it has, those that were added included; of homemade ones by their vocabulary."""
    if hasattr(tokenizer, "__len__"):
        return len(tokenizer)
    return len(tokenizer.get_vocab()) if hasattr(tokenizer, "get_vocab") else None


def _padding_inside(model: Any) -> int | None:
    """The padding id of a model without a configuration: by that of a model inside, or by its embedding."""
    modules = list(model.modules()) if hasattr(model, "modules") else []
    known = {i for m in modules for i in _ids(_get(text_config(_get(m, "config")), "pad_token_id"))}
    known |= {i for m in modules if hasattr(m, "num_embeddings") for i in _ids(_get(m, "padding_idx"))}
    return known.pop() if len(known) == 1 else None


def media_ids(config: Any, processor: Any) -> tuple[int, ...]:
    """Ids that stand for images, videos and sounds."""
    found: list[int] = []
    for name in _MEDIA_KEYS:
        found += _ids(_get(config, name))
    if not found:
        found += _ids(getattr(processor, "image_token_id", None))
    return tuple(dict.fromkeys(found))


def embedding_rows(model: Any) -> int | None:
    """Rows of the input embedding; as measured where the model does not say which it is."""
    try:
        weight = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError):
        return current().embedding_rows
    if getattr(weight, "ndim", 0) == 2 and weight.shape[0]:
        return int(weight.shape[0])
    return current().embedding_rows


def max_positions(config: Any) -> int | None:
    """The longest sequence the configuration has positions for, stretched as its rotary scaling says."""
    limit = next((v for name in POSITIONS if isinstance(v := _get(config, name), int) and v > 0), None)
    if limit is None or limit >= NO_LIMIT:
        return None
    rope = _get(config, "rope_parameters") or _get(config, "rope_scaling") or {}
    if isinstance(rope, Mapping) and rope.get("rope_type", rope.get("type")) in _STRETCHING:
        factor = rope.get("factor")
        return int(limit * factor) if isinstance(factor, int | float) and factor > 1 else limit
    return limit


def features_per_image(config: Any, batch: Mapping[str, Any]) -> Callable[[int], int] | None:
    """How many placeholders the model's n-th image takes; None where that is not known for sure."""
    grid = batch.get("image_grid_thw")
    if grid is not None and getattr(grid, "ndim", 0) == 2 and grid.shape[-1] == 3:
        merge = _get(_get(config, "vision_config"), "spatial_merge_size")
        if not isinstance(merge, int) or merge < 1:
            return None
        patches = [int(t * h * w) for t, h, w in grid.tolist()]
        if any(many % merge**2 for many in patches):
            return None  # this model merges in another way
        return lambda i: patches[i] // merge**2
    fixed = _fixed_features(config, batch.get("pixel_values"))
    return None if fixed is None else lambda i: fixed


def image_count(config: Any, batch: Mapping[str, Any]) -> int | None:
    """How many images the batch has; None where it is not known from the shapes."""
    grid = batch.get("image_grid_thw")
    if grid is not None:
        return len(grid)
    pixels = batch.get("pixel_values")
    if pixels is None:
        return 0 if "input_ids" in batch else None
    return len(pixels) if getattr(pixels, "ndim", 0) == 4 else None


def _fixed_features(config: Any, pixels: Any) -> int | None:
    """For models that give every image the same number of features."""
    if getattr(pixels, "ndim", 0) != 4:
        return None
    model_type, vision = _get(config, "model_type"), _get(config, "vision_config")
    side, patch = pixels.shape[-1], _get(vision, "patch_size")
    if model_type == "gemma3":
        return _whole(_get(config, "mm_tokens_per_image"))
    if model_type == "internvl":
        return _whole(_get(config, "image_seq_length"))
    if model_type == "minivlm":
        return _whole(_get(config, "image_tokens"))
    if not isinstance(patch, int) or patch < 1 or pixels.shape[-2] != side or side % patch:
        return None
    if model_type == "paligemma":
        return (side // patch) ** 2
    if model_type == "llava":
        strategy = _get(config, "vision_feature_select_strategy")
        extra = int(_get(vision, "model_type") in _CLASS_TOKEN) - int(strategy == "default")
        return (side // patch) ** 2 + extra
    return None


def _placeholder(tokenizer: Any, processor: Any) -> tuple[str | None, tuple[int, ...]]:
    """The placeholder's text, as the processor or the tokenizer names it, and what it is encoded to."""
    text = getattr(processor, "image_token", None) or getattr(tokenizer, "image_token", None)
    text = getattr(text, "content", text)
    if not isinstance(text, str) or not text or tokenizer is None:
        return None, ()
    return text, _encoded(tokenizer, text)


def _encoded(tokenizer: Any, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(i) for i in tokenizer.encode(text, add_special_tokens=False))
    except Exception:  # anybody's tokenizer
        return ()


def _name(tokenizer: Any, token: int) -> str | None:
    try:
        name = tokenizer.convert_ids_to_tokens(token)
    except Exception:  # anybody's tokenizer
        return None
    return name if isinstance(name, str) else None


def _get(owner: Any, name: str) -> Any:
    return owner.get(name) if isinstance(owner, Mapping) else getattr(owner, name, None)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _ids(value: Any) -> tuple[int, ...]:
    values: Iterable[Any] = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    return tuple(int(v) for v in values if isinstance(v, int) and not isinstance(v, bool))


def _first_id(*values: Any) -> int | None:
    return next((found[0] for value in values if (found := _ids(value))), None)
