"""Who sees whom: causality, padding, other samples, positions."""

from __future__ import annotations

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.detection.case import Made
from benchmarks.detection.faults.plant import STRANGERS, alter, fault, graft
from benchmarks.detection.handwritten.nanovlm import rotate_half
from benchmarks.detection.variants.batches import packed_by_positions, pad_a_row

MASK = "MASK* mask* future*"


@fault(
    "A08-no-causal-mask",
    families="llama llava qwen2_5_vl internvl smolvlm nanovlm llava_scratch",
    rules=MASK,
    at="",
)
def no_causal_mask(made: Made) -> None:
    """Every token sees the later ones."""
    _with_mask(made, torch.zeros_like)


@fault("A08-mask-inverted", families="llama llava nanovlm", rules=MASK, at="")
def mask_inverted(made: Made) -> None:
    """The causal mask is inverted: a token sees itself and the later ones alone."""

    def inverted(mask: Tensor) -> Tensor:
        blocked = torch.ones_like(mask, dtype=torch.bool).tril(-1)
        return torch.zeros_like(mask).masked_fill(blocked, torch.finfo(mask.dtype).min)

    _with_mask(made, inverted)


@fault("A08-one-token-ahead", families="llama internvl nanovlm", rules=MASK, at="")
def one_token_ahead(made: Made) -> None:
    """The mask's diagonal is off by one: each token sees the next."""

    def shifted(mask: Tensor) -> Tensor:
        blocked = torch.ones_like(mask, dtype=torch.bool).triu(2)
        return torch.zeros_like(mask).masked_fill(blocked, torch.finfo(mask.dtype).min)

    _with_mask(made, shifted)


@fault("X-softmax-over-the-wrong-axis", families="nanovlm", rules=f"{MASK} ROPE*", at="")
def softmax_over_queries(made: Made) -> None:
    """The attention weights are normalised over the queries."""

    class Wrong(type(made["layers"][0])):
        def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
            return _attend(self, x, cos, sin, mask, axis=-2)

    for layer in made["layers"]:
        layer.__class__ = Wrong


@fault("X-keys-not-rotated", families="nanovlm", rules="ROPE*", at="")
def keys_not_rotated(made: Made) -> None:
    """Queries are rotated and keys are not."""

    class Wrong(type(made["layers"][0])):
        def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
            return _attend(self, x, cos, sin, mask, axis=-1, rotate_keys=False)

    for layer in made["layers"]:
        layer.__class__ = Wrong


@fault("X-batch-mean-in-the-features", families="llava internvl nanovlm", rules="MASK* IMG* sample*", at="")
def batch_mean(made: Made) -> None:
    """The features of the other samples are part of each sample's: a mean over the batch."""
    alter(made["projector"], lambda out: out - out.mean(0, keepdim=True))


@fault(
    "X-samples-leak-in-the-decoder",
    families=f"llava llama nanovlm minivlm {STRANGERS}",
    rules="MASK* sample*",
    at="",
)
def samples_leak(made: Made) -> None:
    """A decoder layer adds the mean over the batch."""
    layers = made["layers"] if made.parts else made.model.model.layers
    alter(layers[0], lambda out: out + out.mean(0, keepdim=True))


@fault("X-padding-is-seen", families="llama llava qwen2_5_vl nanovlm", rules="MASK* pad* DATA*", at="")
def padding_is_seen(made: Made) -> None:
    """The batch is padded on the left, and the model is not given the attention mask."""
    pad_a_row(made, left=True)
    made.batch["attention_mask"] = torch.ones_like(made.batch["attention_mask"])


@fault(
    "G13-left-padding-without-positions",
    families="gpt2 gpt_bigcode ctrl xglm",
    rules="MASK* pad* ROPE* DATA*",
    at="",
)
def left_padding(made: Made) -> None:
    """Left padding for learned positions that count from the first column."""
    pad_a_row(made, left=True)


@fault(
    "X-positions-all-zero",
    families="llama llava gpt2",
    rules="ROPE* MASK* position* DATA*",
    at="position_ids",
)
def positions_zero(made: Made) -> None:
    """position_ids are all zero."""
    made.batch["position_ids"] = torch.zeros_like(made.batch["input_ids"])


@fault(
    "X-positions-backwards",
    families="llama qwen2_vl opt",
    rules="ROPE* MASK* position* DATA*",
    at="position_ids",
)
def positions_backwards(made: Made) -> None:
    """Positions count from the last token to the first."""
    count = torch.arange(made.batch["input_ids"].shape[1]).flip(0)
    made.batch["position_ids"] = count.expand_as(made.batch["input_ids"]).contiguous()


@fault(
    "X-positions-through-the-batch",
    families="llama internvl mistral",
    rules="ROPE* MASK* position* DATA*",
    at="position_ids",
    max_position_embeddings=40,
    text_config={"max_position_embeddings": 40},
)
def positions_through_the_batch(made: Made) -> None:
    """Positions are not begun anew for the second row, and pass the longest that the model knows."""
    ids = made.batch["input_ids"]
    made.batch["position_ids"] = torch.arange(ids.numel()).view_as(ids) + 20


@fault(
    "B08-axes-exchanged",
    families="qwen2_5_vl glm4v paddleocr_vl",
    rules="ROPE* IMG* DATA* mrope* position*",
    at="position_ids",
)
def axes_exchanged(made: Made) -> None:
    """The model's own positions with height and width exchanged, for an image that is wider than high."""
    batch = made.batch
    batch["image_grid_thw"] = torch.tensor([[1, 2, 8]] * len(batch["input_ids"]))
    given = {name: value for name, value in batch.items() if name.endswith(("ids", "thw", "mask"))}
    positions, _ = made.model.model.get_rope_index(**given)
    batch["position_ids"] = positions[[0, 2, 1]].contiguous()


@fault(
    "B08-one-dimensional-positions",
    families="qwen2_vl qwen2_5_vl qwen3_vl glm4v ernie4_5_vl_moe",
    rules="ROPE* IMG* DATA* mrope* position*",
    at="position_ids",
)
def one_dimensional_positions(made: Made) -> None:
    """Positions that only count tokens are given, so that the model does not make its own for images."""
    count = torch.arange(made.batch["input_ids"].shape[1])
    made.batch["position_ids"] = count.expand(3, len(made.batch["input_ids"]), -1).contiguous()


@fault(
    "B10-image-block-is-causal",
    families="gemma3 paligemma",
    rules="MASK* IMG* DATA* token-type*",
    at="token_type_ids",
)
def image_block_is_causal(made: Made) -> None:
    """token_type_ids are missing, so that image tokens don't see each other."""
    made.batch.pop("token_type_ids", None)


@fault(
    "D18-packed-samples-see-each-other", families="llama qwen2", rules="MASK* pack* DATA*", at="position_ids"
)
def packed(made: Made) -> None:
    """Two samples in one row, each with its own positions, and an attention mask of ones over both."""
    batch = made.batch
    ids = batch["input_ids"].reshape(1, -1)
    count = torch.arange(batch["input_ids"].shape[1]).repeat(len(batch["input_ids"]))[None]
    made.batch = {
        "input_ids": ids,
        "labels": batch["labels"].reshape(1, -1),
        "position_ids": count,
        "attention_mask": torch.ones_like(ids),
    }


@fault("D18-packed-with-a-cache", families="llama llava qwen3_vl", rules="packed-samples-leak", at="row")
def packed_with_a_cache(made: Made) -> None:
    """Packed as it should be, but the cache is on, with which transformers does not tell samples apart."""
    packed_by_positions(made)
    made.model.config.get_text_config().use_cache = True


def _with_mask(made: Made, change: Any) -> None:
    """Lets attention use `change(mask of zeros)`, which is added to the scores."""
    if hasattr(made.model, "wpe"):  # llava_scratch hands its mask to each block
        for layer in made["layers"]:
            graft(layer, lambda original, x, mask: original(x, change(torch.zeros_like(mask))))
        return
    if made.parts and hasattr(made["layers"][0], "gate_proj"):  # nanovlm: a boolean one, true where seen
        for layer in made["layers"]:
            graft(layer, lambda original, x, cos, sin, mask: original(x, cos, sin, change(mask.float() * 0)))
        return
    layers = made["layers"] if made.parts else made.model.model.layers
    for layer in layers:

        def forward(original: Any, *args: Any, **kwargs: Any) -> Any:
            x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
            kwargs["attention_mask"] = change(x.new_zeros(len(x), 1, x.shape[1], x.shape[1]))
            return original(*args, **kwargs)

        graft(layer.self_attn, forward)


def _attend(
    layer: Any, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, *, axis: int, rotate_keys: bool = True
) -> Tensor:
    """The hand-written decoder block with its attention written out."""
    batch, length, width = x.shape
    h = layer.norm1(x)
    q = layer.q_proj(h).view(batch, length, layer.heads, -1).transpose(1, 2)
    k = layer.k_proj(h).view(batch, length, layer.kv_heads, -1).transpose(1, 2)
    v = layer.v_proj(h).view(batch, length, layer.kv_heads, -1).transpose(1, 2)
    cos, sin = cos[:, None], sin[:, None]
    q = q * cos + rotate_half(q) * sin
    k = k * cos + rotate_half(k) * sin if rotate_keys else k
    repeat = layer.heads // layer.kv_heads
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    scores = (q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5
    weights = scores.masked_fill(~mask, torch.finfo(x.dtype).min).softmax(axis)
    x = x + layer.out_proj((weights @ v).transpose(1, 2).reshape(batch, length, width))
    h = layer.norm2(x)
    return x + layer.down_proj(F.silu(layer.gate_proj(h)) * layer.up_proj(h))


@fault("X-rotated-twice", families="llama llava qwen3 internvl", rules="rotated-twice", at="self_attn")
def rotated_twice(made: Made) -> None:
    """Queries and keys pass the rotary embedding two times."""
    layers = made["layers"] if made.parts else made.model.get_submodule("model.layers")
    module = sys.modules[type(layers[0].self_attn).__module__]
    once = module.apply_rotary_pos_emb

    def twice(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
        return once(*once(q, k, cos, sin, **more), cos, sin, **more)

    def forward(original, *args, **kwargs):
        module.apply_rotary_pos_emb = twice
        try:
            return original(*args, **kwargs)
        finally:
            module.apply_rotary_pos_emb = once

    for layer in layers:
        graft(layer.self_attn, forward)


@fault(
    "X-cached-positions-restart",
    families="llama llava qwen2_5_vl gemma3 internvl",
    rules="cache-disagrees",
    at="",
)
def cached_positions_restart(made: Made) -> None:
    """Rotary positions are counted from the first token of each pass: with a cache they start again."""
    for name, module in made.model.named_modules():
        if "Rotary" in type(module).__name__ and not any(part in name for part in ("vision", "visual")):
            graft(
                module,
                lambda original, x, position_ids, *rest, **more: original(
                    x, position_ids - position_ids[..., :1], *rest, **more
                ),
            )


@fault("X-cache-not-read", families="llama llava qwen2_vl", rules="cache-disagrees", at="")
def cache_not_read(made: Made) -> None:
    """The attention fills the cache, and while decoding looks at the newest token alone."""
    layers = made["layers"] if made.parts else made.model.model.layers
    attention = next(m for n, m in layers[0].named_children() if "attn" in n or "attention" in n)

    def forward(original: Any, hidden_states: Any = None, *args: Any, **kwargs: Any) -> Any:
        alone = hidden_states is not None and hidden_states.shape[1] == 1
        if alone and "attention_mask" in kwargs:
            return original(
                hidden_states, *args, **kwargs | {"past_key_values": None, "attention_mask": None}
            )
        return original(hidden_states, *args, **kwargs)

    graft(attention, forward)
