"""Values of a configuration that contradict each other, as far as arithmetic tells: suspicions to be tried.

A suspicion is no finding: families differ in what they make of a field. Each comes with the change that would
undo it, and only where a model that fails runs with that change was it the cause.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from vlmdoctor.knowledge.rotary_kinds import KINDS

Values = Mapping[str, Any]

HIDDEN = ("embed_dim", "hidden_size", "n_embd", "d_model", "dim")
HEADS = (
    "num_attention_heads",
    "num_heads",
    "n_head",
    "attention_heads",
    "n_heads",
    "encoder_attention_heads",
)
KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv")
LAYERS = ("num_hidden_layers", "depth", "num_layers", "n_layer", "encoder_layers")
POSITIONS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts")
ROPES = ("rope_parameters", "rope_scaling")
_LAYER_NUMBERS = re.compile(
    r"vision_feature_layers?|deepstack_visual_indexes|intermediate_layers_indices|cross_attention_layers"
    r"|fullatt_block_indexes|full_attn_idxs|global_attn_indexes"
)
_ACTIVATION = re.compile(r"(\w+_)?(hidden_act|activation|activation_function|hidden_activation)")
_NEEDED = {
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 4096},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


@dataclass(frozen=True)
class Suspicion:
    """Values that can't go together, and a change after which they could.

    Attributes:
        message: The contradiction in one line, with the paths of the fields.
        fields: Path -> value of what disagrees.
        change: Path -> value that undoes it.
    """

    message: str
    fields: Mapping[str, Any]
    change: Mapping[str, Any]


def suspicions(values: Values, tokens: int | None = None) -> Iterator[Suspicion]:
    """What looks wrong in a configuration, the likeliest first.

    Args:
        values: The configuration as nested mappings.
        tokens: Tokens in a sample of the batch, where one was made.
    """
    parts = list(_parts(values))
    for check in (_heads, _rope, _layers, _experts, _activation, _image):
        for prefix, part in parts:
            yield from check(prefix, part)
    for prefix, part in parts:
        yield from _positions(prefix, part, tokens)
    yield from _vocabulary(values)


def _parts(values: Values, prefix: str = "") -> Iterator[tuple[str, Values]]:
    yield prefix, {name: value for name, value in values.items() if isinstance(name, str)}
    for name, value in values.items():
        if isinstance(value, Mapping) and isinstance(name, str) and name not in ROPES:
            yield from _parts(value, f"{prefix}{name}.")


def _heads(prefix: str, part: Values) -> Iterator[Suspicion]:
    width, heads, kept = _first(part, HIDDEN), _first(part, HEADS), _first(part, KEY_VALUE_HEADS)
    if heads is None:
        return
    heads_at, count = heads
    if kept is not None and count % kept[1]:
        name, number = kept
        yield Suspicion(
            f"{prefix}{heads_at} {count} is no multiple of {prefix}{name} {number}: each key and value head "
            f"serves as many query heads as any other",
            {f"{prefix}{heads_at}": count, f"{prefix}{name}": number},
            {f"{prefix}{name}": _nearest_divisor(count, number)},
        )
    explicit = part.get("head_dim")
    if _is_size(explicit):
        width = None  # heads need not share it then
    if width is not None and width[1] % count:
        name, number = width
        fitting = _nearest_divisor(number, count, multiple_of=kept[1] if kept else 1)
        yield Suspicion(
            f"{prefix}{name} {number} can't be divided among {prefix}{heads_at} {count}",
            {f"{prefix}{name}": number, f"{prefix}{heads_at}": count},
            {f"{prefix}{heads_at}": fitting},
        )
    if _is_size(explicit) and explicit % 2:
        yield Suspicion(
            f"{prefix}head_dim {explicit} is odd: rotary embeddings turn pairs of numbers in a head",
            {f"{prefix}head_dim": explicit},
            {f"{prefix}head_dim": explicit + 1},
        )
    elif width is not None and not width[1] % count and (width[1] // count) % 4:
        name, number = width
        fitting = _nearest_divisor(number, count, multiple_of=kept[1] if kept else 1, head_multiple=4)
        yield Suspicion(
            f"a head is {number // count} wide ({prefix}{name} {number} / {prefix}{heads_at} {count}): "
            f"rotary embeddings turn pairs of numbers in a head, those of images two pairs",
            {f"{prefix}{name}": number, f"{prefix}{heads_at}": count},
            {f"{prefix}{heads_at}": fitting},
        )


def _rope(prefix: str, part: Values) -> Iterator[Suspicion]:
    for name in ROPES:
        rope = part.get(name)
        if not isinstance(rope, Mapping):
            continue
        nested = {k: v for k, v in rope.items() if isinstance(v, Mapping)}
        for key, one in nested.items() if nested else [("", rope)]:
            at = f"{prefix}{name}.{key}." if key else f"{prefix}{name}."
            yield from _one_rope(at, one, prefix, part)


def _one_rope(at: str, rope: Values, prefix: str, part: Values) -> Iterator[Suspicion]:
    share = rope.get("partial_rotary_factor", part.get("partial_rotary_factor", 1.0))
    if _is_number(share) and not 0 < share <= 1:
        path = (
            f"{at}partial_rotary_factor"
            if "partial_rotary_factor" in rope
            else f"{prefix}partial_rotary_factor"
        )
        yield Suspicion(
            f"{path} {share:g} is no share of a head: it lies between 0 and 1", {path: share}, {path: 1.0}
        )
        return
    kind = rope.get("rope_type", rope.get("type", "default"))
    if isinstance(kind, str) and kind not in KINDS:
        path = f"{at}{'rope_type' if 'rope_type' in rope else 'type'}"
        close = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.4) or ["default"]
        yield Suspicion(
            f"{path} '{kind}' is none that transformers knows ({', '.join(KINDS)})",
            {path: kind},
            {path: close[0]} | {f"{at}{n}": v for n, v in _NEEDED.get(close[0], {}).items() if n not in rope},
        )
    needed = _NEEDED.get(kind, {}) if isinstance(kind, str) else {}
    if missing := [n for n in needed if n not in rope]:
        yield Suspicion(
            f"{at.rstrip('.')} lacks {', '.join(missing)}, which the type '{kind}' needs",
            {f"{at}rope_type": kind},
            {f"{at}{n}": needed[n] for n in missing},
        )
    half = rotated_half(part, share)
    if half is None:
        return
    sections = rope.get("mrope_section")
    if isinstance(sections, list) and sections and all(map(_is_size, sections)) and sum(sections) != half:
        path = f"{at}mrope_section"
        yield Suspicion(
            f"{path} {sections} adds up to {sum(sections)}; half of the rotated part of a head is {half}",
            {path: sections},
            {path: scaled(sections, half)},
        )
    for which in ("short_factor", "long_factor"):
        factors = rope.get(which)
        if isinstance(factors, list) and factors and len(factors) != half:
            both = {f"{at}{n}": [1.0] * half for n in ("short_factor", "long_factor") if n in rope}
            yield Suspicion(
                f"{at}{which} has {len(factors)} numbers; half of the rotated part of a head is {half}",
                {f"{at}{which}": len(factors)},
                both,
            )
            return


def _layers(prefix: str, part: Values) -> Iterator[Suspicion]:
    layers = _first(part, LAYERS)
    for name, value in part.items():
        if layers is not None and name.endswith("layer_types") and isinstance(value, list) and value:
            count = layers[1]
            if len(value) != count and count < 10_000:
                yield Suspicion(
                    f"{prefix}{name} has {len(value)} entries, {prefix}{layers[0]} is {count}",
                    {f"{prefix}{name}": len(value), f"{prefix}{layers[0]}": count},
                    {f"{prefix}{name}": [value[i % len(value)] for i in range(count)]},
                )
        if not _LAYER_NUMBERS.fullmatch(name):
            continue
        where, owner = (prefix, part)
        if name.startswith("vision_feature") and isinstance(part.get("vision_config"), Mapping):
            where, owner = f"{prefix}vision_config.", part["vision_config"]
        depth = _first(owner, LAYERS)
        numbers = value if isinstance(value, list) else [value]
        if depth is None or not numbers or not all(type(n) is int for n in numbers):
            continue
        room = depth[1] + name.startswith("vision_feature")  # the embeddings count as a layer there
        outside = [n for n in numbers if not -room <= n < room]
        if outside:
            fitting = [(-1 if n < 0 else depth[1] - 1) if n in outside else n for n in numbers]
            yield Suspicion(
                f"{prefix}{name} names layer {outside[0]}, {where}{depth[0]} is {depth[1]}",
                {f"{prefix}{name}": value, f"{where}{depth[0]}": depth[1]},
                {f"{prefix}{name}": fitting if isinstance(value, list) else fitting[0]},
            )


def _experts(prefix: str, part: Values) -> Iterator[Suspicion]:
    experts, chosen = _first(part, EXPERTS), _first(part, CHOSEN)
    if experts is not None and chosen is not None and chosen[1] > experts[1]:
        yield Suspicion(
            f"{prefix}{chosen[0]} {chosen[1]} is more than {prefix}{experts[0]} {experts[1]}",
            {f"{prefix}{chosen[0]}": chosen[1], f"{prefix}{experts[0]}": experts[1]},
            {f"{prefix}{chosen[0]}": experts[1]},
        )


def _activation(prefix: str, part: Values) -> Iterator[Suspicion]:
    from transformers.activations import ACT2FN

    for name, value in part.items():
        if _ACTIVATION.fullmatch(name) and isinstance(value, str) and value not in ACT2FN:
            close = difflib.get_close_matches(value, list(ACT2FN), n=1) or ["gelu"]
            yield Suspicion(
                f"{prefix}{name} '{value}' is no activation that transformers knows",
                {f"{prefix}{name}": value},
                {f"{prefix}{name}": close[0]},
            )


def _image(prefix: str, part: Values) -> Iterator[Suspicion]:
    """How an image is cut into patches, and these into tokens."""
    vision = part.get("vision_config") if isinstance(part.get("vision_config"), Mapping) else None
    where = f"{prefix}vision_config." if vision is not None else prefix
    seen = vision if vision is not None else part
    image, patch = seen.get("image_size"), seen.get("patch_size")
    if not _is_size(image) or not _is_size(patch):
        return
    if image < patch:
        yield Suspicion(
            f"{where}image_size {image} is smaller than one patch ({where}patch_size {patch})",
            {f"{where}image_size": image, f"{where}patch_size": patch},
            {f"{where}image_size": 16 * patch},
        )
        return
    across = image // patch
    if vision is None:
        return
    factor = part.get("scale_factor")
    if _is_size(factor) and across % factor:
        yield Suspicion(
            f"an image is {across} patches wide ({where}image_size {image} / {where}patch_size {patch}), "
            f"which can't be divided by {prefix}scale_factor {factor}",
            {f"{where}image_size": image, f"{where}patch_size": patch, f"{prefix}scale_factor": factor},
            {f"{where}image_size": patch * factor * max(1, across // factor)},
        )
    pooled = part.get("mm_tokens_per_image")
    if _is_size(pooled):
        side = round(pooled**0.5)
        if side * side != pooled or across % side:
            fitting = next(s for s in range(min(side, across), 0, -1) if not across % s)
            yield Suspicion(
                f"{prefix}mm_tokens_per_image {pooled} can't be pooled from {across} × {across} patches "
                f"({where}image_size {image} / {where}patch_size {patch})",
                {f"{prefix}mm_tokens_per_image": pooled, f"{where}image_size": image},
                {f"{prefix}mm_tokens_per_image": fitting * fitting},
            )


def _positions(prefix: str, part: Values, tokens: int | None) -> Iterator[Suspicion]:
    room = _first(part, POSITIONS)
    if room is not None and tokens is not None and tokens > room[1] and "vision" not in prefix:
        yield Suspicion(
            f"a sample has {tokens} tokens, with those of its images; {prefix}{room[0]} is {room[1]}",
            {f"{prefix}{room[0]}": room[1]},
            {f"{prefix}{room[0]}": tokens},
        )


def _vocabulary(values: Values) -> Iterator[Suspicion]:
    text = values.get("text_config") if isinstance(values.get("text_config"), Mapping) else None
    prefix, part = ("text_config.", text) if text is not None else ("", values)
    size = part.get("vocab_size")
    if not _is_size(size):
        return
    found = [
        (f"{where}{name}", value)
        for where, owner in (("", values), ("text_config.", text or {}))
        for name, value in owner.items()
        if re.search(r"_(token_id|token_index|patch_id)$", name) and _is_size(value) and value >= size
    ]
    for path, value in sorted(found, key=lambda entry: "image" not in entry[0]):
        yield Suspicion(
            f"{path} {value} is out of range of the embedding ({prefix}vocab_size {size})",
            {path: value, f"{prefix}vocab_size": size},
            {f"{prefix}vocab_size": max(v for _, v in found) + 1},
        )


def rotated_half(part: Values, share: Any = 1.0) -> int | None:
    """Half of the numbers in a head that rotary embeddings turn; None where nothing says it."""
    width, heads = _first(part, HIDDEN), _first(part, HEADS)
    head_dim = part.get("head_dim")
    if not _is_size(head_dim):
        if width is None or heads is None or width[1] % heads[1]:
            return None
        head_dim = width[1] // heads[1]
    return int(head_dim * share) // 2 if _is_number(share) else None


def scaled(sections: list[int], total: int) -> list[int]:
    """Sections in about the same proportion that add up to `total`."""
    rest = [max(1, section * total // sum(sections)) for section in sections[1:]]
    return [max(1, total - sum(rest)), *rest]


def _nearest_divisor(number: int, near: int, multiple_of: int = 1, head_multiple: int = 1) -> int:
    fitting = [n for n in range(1, min(number, 4096) + 1) if not number % n]
    good = [n for n in fitting if not n % multiple_of and not (number // n) % head_multiple]
    return min(good or fitting, key=lambda n: (abs(n - near), n))


def _first(part: Values, names: tuple[str, ...]) -> tuple[str, int] | None:
    return next(((name, part[name]) for name in names if _is_size(part.get(name))), None)


def _is_size(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 < value < 1 << 31


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
