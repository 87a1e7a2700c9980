"""What the names of parameters say: the role, the layer, and what wrappers put in."""

from __future__ import annotations

import functools
import re

from vlmdoctor.knowledge import named_parts

ROLES = ("vision", "projector", "language", "head", "other")
MOST_NAMES = 1 << 15  # that are remembered: each is asked for by many

_WRAPPERS = re.compile(
    r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)
_LEADING = re.compile(r"^(?:module\.)+|^base_model\.model\.")
_PEFT = re.compile(r"\.base_layer(?=\.)|\.modules_to_save\.[^.]+(?=\.)")
_ADAPTER = r"lora_\w+|vera_\w+|ia3_l|oft_\w+|trainable_tokens_\w+"
_ADAPTERS_NAME = re.compile(rf"\.({_ADAPTER})\.(?!weight$|bias$)[^.]+(?=\.weight$|\.bias$|$)")
_IN_ADAPTER = re.compile(rf"(?:^|\.)(?:{_ADAPTER})(?:\.|$)")


@functools.lru_cache(maxsize=MOST_NAMES)
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


@functools.lru_cache(maxsize=MOST_NAMES)
def layer_of(name: str) -> tuple[str, int | None]:
    """The repeated block that a parameter sits in, and its number.

    >>> layer_of("model.layers.3.mlp.up_proj.weight")
    ('model.layers.3', 3)
    """
    match = _BLOCK.match(name)
    return (match[1], int(match[2])) if match else ("", None)


def role_of(name: str) -> str:
    """The role of a canonical parameter or module name, as it was said or as the name has it: one of `ROLES`.

    >>> role_of("model.visual.merger.mlp.0.weight")
    'projector'
    """
    return named_parts.said_role(name) or _role_by_name(name)


@functools.lru_cache(maxsize=MOST_NAMES)
def _role_by_name(name: str) -> str:
    layer, _ = layer_of(name)
    parts = (layer or name).split(".")
    for role, pattern in _ROLE_PARTS:
        if any(pattern.fullmatch(part) for part in parts):
            return role
    return "other"


def plain_name(name: str) -> str:
    """The canonical name, without the adapter's own name in it (`lora_A.default.weight`)."""
    return _ADAPTERS_NAME.sub(r".\1", canonical_name(name)).replace(".token_adapter.", ".")


def is_adapter(name: str) -> bool:
    """Whether the name is that of a low-rank (or the like) adapter's tensor."""
    return _IN_ADAPTER.search(name) is not None
