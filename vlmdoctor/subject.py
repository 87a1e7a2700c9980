"""What is examined: a model with whatever else the user has, under canonical names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

ROLES = ("vision", "projector", "language", "head", "other")


@dataclass
class Subject:
    """A model and what it is trained with; everything but the model may be missing.

    Attributes:
        model: A module, or a callable that builds one.
        batch: The mapping or tuple that the model is called with.
        loss_fn: `loss_fn(model, batch) -> Tensor`; by default the output's `.loss`.
        optimizer: The optimizer, or several.
        lr_scheduler: The learning-rate scheduler.
        tokenizer: The tokenizer.
        processor: The processor.
        train_dataset: The training data.
        data_collator: What makes batches of it.
        checkpoint: A path, or a state dict, that the weights were meant to come from.
        trainable: Patterns of the names of the parameters that are meant to learn: a plain text is
            searched for among the name's dotted parts, `*` and `?` are wild cards.
        training_args: A mapping or `TrainingArguments`.
        contract: What the run is meant to be, as `[tool.vlmdoctor.contract]` says it.
    """

    model: Any
    batch: Any = None
    loss_fn: Callable[[Any, Any], Any] | None = None
    optimizer: Any = None
    lr_scheduler: Any = None
    tokenizer: Any = None
    processor: Any = None
    train_dataset: Any = None
    data_collator: Any = None
    checkpoint: Any = None
    trainable: Iterable[str] | str | None = None
    training_args: Any = None
    contract: Mapping[str, str] | None = None


_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_LEADING = re.compile(r"^(?:module\.)+|^base_model\.model\.")
_PEFT = re.compile(r"\.base_layer(?=\.)|\.modules_to_save\.[^.]+(?=\.)")


def canonical_name(name: str) -> str:
    """`name` without what torch.compile, DDP, FSDP, activation checkpointing and PEFT put into it.

    >>> canonical_name("module._orig_mod.vision_proj.weight")
    'vision_proj.weight'
    """
    name = _WRAPPERS.sub("", name)
    while (stripped := _WRAPPERS.sub("", _LEADING.sub("", name))) != name:
        name = stripped
    return _PEFT.sub("", name)


# Looked for as whole dotted parts above the repeated blocks; the first pattern that matches any part
# wins. Named projectors come before vision, since one often sits inside the tower (Qwen's
# `visual.merger`); a bare `proj` after it, since a tower's patch embedding has one too. Parts of
# models that also hear or draw come first: they are none of the roles that matter to seeing.
_ROLE_PARTS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("other", re.compile(r"\w*(audio|speech)\w*|(generation|gen)_(aligner|head|embeddings|embed)")),
    (
        "projector",
        re.compile(
            r"(multi_modal|multimodal|mm|vision|visual|image|img|vit|modality|feature|clip"
            r"|llm|lm|language|llama|t5|opt)_?"
            r"(projector|projection|proj|connector|adapter|adaptor|aligner|resampler)"
            r"(_list|_model|s|_up|_down|_norm|_layernorm|_mlp)?"
            r"|connector|aligner|resampler|perceiver\w*|[qQ]_?[fF]ormer|abstractor|(deepstack_)?merger(_list)?"
            r"|mlp1|mlp_AR|embed_vision|vision_embed_tokens|image_newline|query_tokens"
            r"|(vision|image)_?(to|2)_?(text|language|lm)\w*"
        ),
    ),
    (
        "vision",
        re.compile(
            r"\w*(vision|visual|image|img|pixel|patch_embed|embed_patch|patch_conv)\w*"
            r"|vit|vpm|clip|siglip|dino\w*|eva|vq_?(model|vae)"
        ),
    ),
    ("projector", re.compile(r"projectors?|projection|proj|bridge|adapter|adaptor|mapper")),
    (
        "head",
        re.compile(r"lm_head|embed_out|output_head|head|generator|output_projection|output|classifier|score"),
    ),
    (
        "language",
        re.compile(
            r"\w*(language|text|llm|decoder|transformer|gpt|llama|backbone)\w*|lang_\w+|lm|model|encoder|shared"
            r"|layers|blocks|h|wte|wpe|ln_f|(final_)?norm|tok(en)?_emb\w*|embed\w*|rotary_emb"
        ),
    ),
)
_BLOCK = re.compile(
    r"^(.*?(?:^|\.)[A-Za-z_]*(?:layers?|blocks?|resblocks|h|stages?|encoders?)\.(\d+))(?=\.|$)"
)


def layer_of(name: str) -> tuple[str, int | None]:
    """The repeated block that a parameter sits in, and its number.

    >>> layer_of("model.layers.3.mlp.up_proj.weight")
    ('model.layers.3', 3)
    """
    match = _BLOCK.match(name)
    return (match[1], int(match[2])) if match else ("", None)


def role_of(name: str) -> str:
    """The role of a canonical parameter or module name: one of `ROLES`.

    >>> role_of("model.visual.merger.mlp.0.weight")
    'projector'
    """
    layer, _ = layer_of(name)
    parts = (layer or name).split(".")
    for role, pattern in _ROLE_PARTS:
        if any(pattern.fullmatch(part) for part in parts):
            return role
    return "other"


def compile_patterns(patterns: Iterable[str] | str) -> dict[str, re.Pattern[str]]:
    """Patterns of parameter names, compiled; `search` them in canonical names.

    A plain text matches whole dotted parts (`lm` matches `lm.layers.0.weight` and not `lm_head.weight`).
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    compiled = {}
    for text in patterns:
        body = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in text)
        compiled[text] = re.compile(rf"(?:^|\.){body}(?:\.|$)")
    return compiled


def optimizers(optimizer: Any) -> list[Any]:
    """The optimizers in what the user gave: none, one, a sequence, or a wrapper around one."""
    if optimizer is None:
        return []
    if isinstance(optimizer, Mapping):
        return list(optimizer.values())
    if isinstance(optimizer, list | tuple):
        return list(optimizer)
    return [optimizer]


def vocab_size(model: Any) -> int | None:
    """Rows of the output head: from the head itself, else from the configuration; None where unknown."""
    head = None
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        head = getattr(model, "lm_head", None)
    weight = getattr(head, "weight", None)
    if weight is not None and getattr(weight, "ndim", 0) == 2:
        return int(weight.shape[0])
    config = getattr(model, "config", None)
    text_config = getattr(config, "text_config", None) or config
    size = getattr(text_config, "vocab_size", None)
    return int(size) if isinstance(size, int) else None
