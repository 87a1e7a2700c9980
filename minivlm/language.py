"""The decoder: RMSNorm, rotary positions, grouped-query attention, SwiGLU, key/value cache.

Shapes:
    B batch, T new tokens, S all keys (cached and new), D hidden size, F feed-forward width,
    N query heads, K key/value heads, H head_dim
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from minivlm.config import MiniVLMConfig

LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Scalings of the rotary positions whose frequencies change once a text outgrows the trained length."""


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class RotaryEmbedding(nn.Module):
    """Cosines and sines of the positions.

    The table has head_dim / 2 frequencies: it is made from head_dim, never from the hidden size. It stays in
    float32 whatever the model is cast to, since bfloat16 can't tell the positions 256 and 257 apart.
    """

    inv_freq: Tensor

    def __init__(self, config: MiniVLMConfig) -> None:
        super().__init__()
        self.config = config
        inv_freq, self.attention_scaling = self.frequencies()
        # Not persistent, so a checkpoint does not hold it: `_init_weights` makes it anew after loading.
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    def frequencies(self, length: int | None = None) -> tuple[Tensor, float]:
        """inv_freq [H / 2] in float32, and the factor that some scalings put on the tables.

        `length` is how many positions are in use, for the scalings that depend on it.
        """
        parameters = self.config.rope_parameters
        kind, theta, dim = parameters["rope_type"], parameters["rope_theta"], self.config.head_dim
        if kind not in ("default", "ntk"):
            # Some of them make helpers on the default device, which is meta while a checkpoint is loaded.
            with torch.device("cpu"):
                return ROPE_INIT_FUNCTIONS[kind](self.config, device=torch.device("cpu"), seq_len=length)
        if kind == "ntk":
            # Stretches the slowest wave by the factor and leaves the fastest, which tells neighbours apart.
            theta *= parameters["factor"] ** (dim / (dim - 2))
        exponents = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim
        return 1.0 / theta**exponents, 1.0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        if not self.inv_freq.is_meta:
            # `.to(bfloat16)` has rounded the table and `.to_empty()` left garbage; only its device is wanted.
            self.inv_freq = self.frequencies()[0].to(self.inv_freq.device)
        return self

    @torch.no_grad()
    def forward(self, position_ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """position_ids [B, T] -> cos, sin, each [B, 1, T, H]."""
        inv_freq, scale = self.inv_freq, self.attention_scaling
        if self.config.rope_parameters["rope_type"] in LENGTH_DEPENDENT:
            inv_freq, scale = self.frequencies(int(position_ids.max()) + 1)
            inv_freq = inv_freq.to(position_ids.device)
        angles = position_ids[:, None, :, None].float() * inv_freq  # [B, 1, T, H / 2]
        angles = torch.cat([angles, angles], dim=-1)
        return (angles.cos() * scale).to(dtype), (angles.sin() * scale).to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x[i], x[i + H / 2]) by its angle; x [B, heads, T, H]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention with fewer key/value heads than query heads."""

    def __init__(self, config: MiniVLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.head_dim
        self.dropout = config.attention_dropout
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        else:
            self.q_norm = self.k_norm = None

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None
    ) -> Tensor:
        """x [B, T, D] -> [B, T, D]; mask [B, 1, T, S] is True where a query may look, None means causal."""
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.heads, self.head_dim)  # [B, T, N, H]
        k = self.k_proj(x).view(B, T, self.kv_heads, self.head_dim)  # [B, T, K, H]
        v = self.v_proj(x).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)  # [B, K, T, H]
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q = rotate(q.transpose(1, 2), cos, sin)  # [B, N, T, H]
        k = rotate(k.transpose(1, 2), cos, sin)  # [B, K, T, H]
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)  # [B, K, S, H]
        x = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and T > 1,
            enable_gqa=self.heads != self.kv_heads,
        )  # [B, N, T, H]
        return self.o_proj(x.transpose(1, 2).reshape(B, T, self.heads * self.head_dim))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: MiniVLMConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each normalised before and added after."""

    def __init__(self, config: MiniVLMConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, past_key_values: Cache | None = None
    ) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, past_key_values)
        return x + self.mlp(self.post_attention_layernorm(x))


class LanguageModel(nn.Module):
    """Embeddings, the decoder layers and the last norm."""

    def __init__(self, config: MiniVLMConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(DecoderLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = RotaryEmbedding(config)

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """inputs_embeds [B, T, D] -> hidden states [B, T, D]."""
        B, T, _ = inputs_embeds.shape
        past = cache.get_seq_length() if cache is not None else 0
        if position_ids is None:
            position_ids = positions(attention_mask, segment_ids, B, T, past, inputs_embeds.device)
        mask = attention_allowed(attention_mask, segment_ids, T, past, inputs_embeds.device)
        cos, sin = self.rotary_emb(position_ids, inputs_embeds.dtype)
        x = inputs_embeds
        for layer in self.layers:
            x = layer(x, cos, sin, mask, past_key_values=cache)
        return self.norm(x)


def positions(
    attention_mask: Tensor | None,
    segment_ids: Tensor | None,
    batch: int,
    length: int,
    past: int,
    device: torch.device,
) -> Tensor:
    """Positions [B, T] of the new tokens: counted from each sample's first real token."""
    if segment_ids is not None:
        index = torch.arange(length, device=device).expand_as(segment_ids)
        starts = torch.ones_like(segment_ids, dtype=torch.bool)
        starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
        return index - torch.where(starts, index, 0).cummax(dim=1).values
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(dim=1) - 1).clamp_(min=0)[:, -length:]
    return torch.arange(past, past + length, device=device).expand(batch, length)


def attention_allowed(
    attention_mask: Tensor | None, segment_ids: Tensor | None, length: int, past: int, device: torch.device
) -> Tensor | None:
    """Which keys each query may look at, [B, 1, T, S] of bool; None where plain causal attention is right.

    A token looks at itself and at what stands before it, never at padding and never at another sample:

        packed a a b b .        left padding . a a a
             a x                           .
             a x x                         a   x
             b     x                       a   x x
             b     x x                     a   x x x
    """
    if attention_mask is not None and attention_mask.ndim == 4:
        return attention_mask  # made by the caller, who knows best
    padded = attention_mask is not None and hides_a_key(attention_mask)
    if segment_ids is None and not padded and (past == 0 or length == 1):
        return None
    keys = torch.arange(past + length, device=device)
    queries = torch.arange(past, past + length, device=device)
    allowed = (keys[None, :] <= queries[:, None])[None, None]  # [1, 1, T, S]
    if segment_ids is not None:
        allowed = allowed & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
    if padded:
        allowed = allowed & attention_mask[:, None, None, :].bool()
        # A padding query may look at nothing, which makes some kernels return NaN: let it look at itself.
        allowed = allowed | (keys[None, :] == queries[:, None])[None, None]
    return allowed


def hides_a_key(attention_mask: Tensor) -> bool:
    """Whether a real token has padding before it; padding on the right is hidden by causality alone."""
    if torch.compiler.is_compiling():
        return True
    return bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any())


def new_cache(config: MiniVLMConfig) -> Cache:
    """An empty key/value cache."""
    return DynamicCache(config=config)
