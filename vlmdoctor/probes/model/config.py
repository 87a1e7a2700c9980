"""The configuration against what it describes: tables, ties, special tokens, the processor's image sizes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.config import Configuration, ImageSizes, Tie
from vlmdoctor.knowledge.parameter_names import plain_name
from vlmdoctor.plain_text import text_of
from vlmdoctor.probes.checkpoint.names import innermost_model
from vlmdoctor.subject import Subject

MOST_OF_THE_MODEL = 0.8  # of its numbers: else the configuration is that of a part
MOST_TOKENS, MOST_TEXT = 64, 400
# Placeholders are replaced before they are looked up, so that they need no row of their own.
_PLACEHOLDER = re.compile(r"image|img|video|audio|vision|visual|patch", re.IGNORECASE)


def probe(subject: Subject, gather: Callable[[type], Any]) -> Configuration:
    """Reads names, shapes and identities; runs nothing."""
    outer = _configured(subject.model)
    if outer is None:
        raise Unavailable("the model has no configuration of transformers")
    model = innermost_model(outer)
    config = model.config
    embedding, embedding_rows = _table(model, "get_input_embeddings")
    head, head_rows = _table(model, "get_output_embeddings")
    tokenizer = subject.tokenizer or getattr(subject.processor, "tokenizer", None)
    vocabulary = _vocabulary(tokenizer)
    dropped, save_error = _save(outer, model)
    tokens = max(vocabulary.values(), default=-1) + 1 if vocabulary is not None else None
    image_token_id = _first_int(config, "image_token_id", "image_token_index")
    return Configuration(
        embedding=embedding,
        embedding_rows=embedding_rows,
        head=head,
        head_rows=head_rows,
        vocab_size=_vocab_size(config),
        ties=_ties(outer, model),
        dropped=dropped,
        save_error=save_error,
        tokens=tokens,
        beyond_embedding=_beyond(vocabulary, embedding_rows),
        beyond_head=_beyond(vocabulary, head_rows) if head_rows != embedding_rows else (),
        image_token_id=image_token_id,
        image_token=next((t for t, v in (vocabulary or {}).items() if v == image_token_id), None),
        placeholder_ids=_placeholder_ids(subject.processor, tokenizer),
        sizes=_sizes(subject.processor, model, config),
    )


def _configured(model: Any) -> Any | None:
    """The model of transformers that this is, or that a module of the user's is built around."""
    total = sum(parameter.numel() for parameter in model.parameters())
    for module in model.modules():
        if hasattr(getattr(innermost_model(module), "config", None), "to_dict"):
            size = sum(parameter.numel() for parameter in module.parameters())
            return module if size >= MOST_OF_THE_MODEL * total else None
    return None


def _table(model: Any, getter: str) -> tuple[str | None, int | None]:
    """(name, rows) of the weight of the module that the getter gives."""
    try:
        weight = getattr(getattr(model, getter)(), "weight", None)
    except (AttributeError, NotImplementedError, TypeError):
        return None, None
    if getattr(weight, "ndim", 0) != 2:
        return None, None
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter is weight:
            return plain_name(name), int(weight.shape[0])
    return None, None


def _vocab_size(config: Any) -> int | None:
    get_text_config = getattr(config, "get_text_config", None)
    text = get_text_config(decoder=True) if get_text_config is not None else config
    return _first_int(text, "vocab_size")


def _first_int(config: Any, *names: str) -> int | None:
    values = (getattr(config, name, None) for name in names)
    return next((value for value in values if isinstance(value, int)), None)


def _ties(outer: Any, model: Any) -> tuple[Tie, ...]:
    """The ties that the model's own list declares, and whether they hold."""

    declared = getattr(model, "all_tied_weights_keys", None)
    if not isinstance(declared, dict):
        return ()
    # PEFT puts a trained copy into the place of a module: it is what counts.
    parameters = {
        plain_name(name): parameter
        for name, parameter in outer.named_parameters(remove_duplicate=False)
        if ".original_module." not in name
    }
    found = []
    for target, source in declared.items():
        left, right = parameters.get(plain_name(target)), parameters.get(plain_name(source))
        if left is None or right is None:
            continue
        tied = left is right or (not left.is_meta and left.data_ptr() == right.data_ptr())
        equal = tied or None
        if not tied and not left.is_meta and left.shape == right.shape and left.dtype == right.dtype:
            equal = left.device == right.device and bool(torch.equal(left.detach(), right.detach()))
        found.append(
            Tie(
                target=plain_name(target),
                source=plain_name(source),
                tied=tied,
                equal=equal,
                trainable=left.requires_grad or right.requires_grad,
            )
        )
    return tuple(found)


def _save(outer: Any, model: Any) -> tuple[tuple[str, ...], str | None]:
    """What `save_pretrained` would leave out for good, and what it would raise; nothing is written."""
    try:
        from transformers import PreTrainedModel
        from transformers.modeling_utils import remove_tied_weights_from_state_dict
    except ImportError:
        return (), None
    if not isinstance(model, PreTrainedModel) or hasattr(outer, "peft_config"):
        return (), None
    state = model.state_dict()
    if any(getattr(tensor, "is_meta", False) for tensor in state.values()):
        return (), None
    before = set(state)
    try:
        left = remove_tied_weights_from_state_dict(state, model)
    except RuntimeError as error:
        return (), text_of(error).partition("\n")[0][:MOST_TEXT]
    except Exception:
        return (), None  # an unknown version: the dry run has nothing to say
    filled = getattr(model, "all_tied_weights_keys", None) or {}
    pairs = set(filled) | set(filled.values())
    return tuple(sorted(before - set(left) - pairs)), None


def _vocabulary(tokenizer: Any) -> dict[str, int] | None:
    try:
        vocabulary = tokenizer.get_vocab()
    except (AttributeError, NotImplementedError, TypeError):
        return None
    return {str(token): value for token, value in vocabulary.items() if isinstance(value, int)}


def _beyond(vocabulary: dict[str, int] | None, rows: int | None) -> tuple[tuple[str, int], ...]:
    if vocabulary is None or rows is None:
        return ()
    found = [(token, value) for token, value in vocabulary.items() if value >= rows]
    return tuple(sorted((t for t in found if not _PLACEHOLDER.search(t[0])), key=lambda t: t[1]))[
        :MOST_TOKENS
    ]


def _placeholder_ids(processor: Any, tokenizer: Any) -> tuple[int, ...]:
    """Ids that processor and tokenizer call image tokens."""
    if processor is None or not hasattr(processor, "image_processor"):
        return ()
    found = {
        value
        for owner in (processor, tokenizer)
        for value in (getattr(owner, "image_token_id", None), *_ids(owner))
        if isinstance(value, int)
    }
    return tuple(sorted(found))


def _ids(owner: Any) -> tuple[int, ...]:
    try:
        return tuple(getattr(owner, "image_token_ids", None) or ())
    except (AttributeError, TypeError):
        return ()


# Their towers take images of one size, or count tokens as the processor's three settings say.
ONE_SIZE = ("llava", "vipllava", "paligemma", "blip-2")
COUNTED = ("llava", "llava_next", "vipllava")


def _sizes(processor: Any, model: Any, config: Any) -> ImageSizes:
    vision = getattr(config, "vision_config", None)
    if processor is None or vision is None:
        return ImageSizes()
    model_type = getattr(config, "model_type", "")
    extra = tower_extra = None
    if model_type in COUNTED:
        added = _first_int(processor, "num_additional_image_tokens")
        strategies = (
            getattr(processor, "vision_feature_select_strategy", None),
            getattr(config, "vision_feature_select_strategy", None),
        )
        if added is not None and all(strategy in ("default", "full") for strategy in strategies):
            class_token = any(name.endswith("class_embedding") for name, _ in model.named_parameters())
            extra = added - (strategies[0] == "default")
            tower_extra = int(class_token) - (strategies[1] == "default")
    return ImageSizes(
        patch=_first_int(processor, "patch_size"),
        tower_patch=_first_int(vision, "patch_size"),
        image=_side(getattr(processor, "image_processor", None)) if model_type in ONE_SIZE else None,
        tower_image=_first_int(vision, "image_size"),
        extra_tokens=extra,
        tower_extra_tokens=tower_extra,
    )


def _side(image_processor: Any) -> int | None:
    """The side of the square images that it makes; None where that is not known."""
    cropped = getattr(image_processor, "do_center_crop", False)
    size: Any = getattr(image_processor, "crop_size" if cropped else "size", None)
    try:
        height, width = size["height"], size["width"]
    except (TypeError, KeyError):
        return None
    resized = cropped or getattr(image_processor, "do_resize", False)
    return int(height) if resized and isinstance(height, int) and height == width else None
