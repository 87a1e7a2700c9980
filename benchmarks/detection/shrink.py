"""Any model of `transformers` in a few hundred thousand parameters: its default config with small numbers.

Every width becomes `HIDDEN`, so that what has to agree agrees; a list of layers keeps one of each kind.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig

from benchmarks.detection.families import OVERRIDES
from vlmdoctor.targets.synthetic import consistent, default_config

HIDDEN, HEADS, KEY_VALUE_HEADS, HEAD_DIM, LAYERS, WIDE, VOCABULARY = 64, 4, 2, 16, 2, 96, 256
EXPERTS, CHOSEN, LENGTH, IMAGE, PATCH = 4, 2, 512, 32, 8
# Where a sum has 64 parts and not 4096, weights of 0.02 leave nearly nothing of what they multiply.
SPREAD = 0.08
FIRST_TOKEN = 160  # ids from here on are special; text draws below them

# The first pattern that fits the whole name gives the number; floats, flags and texts stay as they are.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"pad_token_(id|index)", 0),
    (r"(bos|decoder_start)_token_id", 1),
    (r"(eos|sep|eod|forced_eos)_token_id", 2),
    (r"(num_|n_)?(local_|routed_)?experts|moe_num_experts|num_local_experts|n_routed_experts", EXPERTS),
    (r"(num_|n_)experts_per_tok(en)?|moe_k|moe_topk|num_selected_experts|top_k(_experts)?", CHOSEN),
    (r"(moe_)?(num_|n_)shared_experts", 1),
    (r"(swa_)?(num|n)_(key_value|kv|query_groups)(_heads)?|num_(global_)?key_value_heads", KEY_VALUE_HEADS),
    (r"num_kv_heads|swa_num_key_value_heads|linear_num_key_heads", KEY_VALUE_HEADS),
    (r"\w*(num|n)_(sliding_)?(attention_)?heads", HEADS),
    (r"(\w+_)?attention_heads|n_head|heads|linear_num_(value_)?heads", HEADS),
    (r"resampler_(n_)?heads|mamba_num_heads|index_n_heads|mamba_n_heads", HEADS),
    (r"(linear_)?(swa_|global_|index_|mamba_|resampler_|linear_key_|linear_value_)?(d_)?head_dim", HEAD_DIM),
    (r"v_head_dim|d_kv|resampler_dim_head", HEAD_DIM),
    (r"kv_channels|mamba_d_head|query_pre_attn_scalar", HEAD_DIM),
    (r"qk_nope_head_dim|qk_rope_head_dim", HEAD_DIM // 2),
    (r"qk_head_dim", HEAD_DIM),
    (r"rotary_dim", HEAD_DIM // 2),
    (r"(kv|q)_lora_rank|laurel_rank|hc_lowrank", HEAD_DIM),
    (r"\w*(num|n)_(\w+_)?layers|n_layer|depth|resampler_depth", LAYERS),
    (r"(encoder|decoder)_layers|layers|n_layers", LAYERS),
    (r"num_global_layers|num_kv_shared_layers|num_nextn_predict_layers|first_k_dense_replace", 0),
    (r"(extended_|unpadded_)?vocab_size(_per_layer_input)?|num_embeddings|codebook_size", VOCABULARY),
    (r"\w*(intermediate|inner|ffn)_(size|dim|hidden_size)\w*", WIDE),
    (r"\w*mlp_dim|d_ff|n_inner|ffn_dim|intermediate_size_mlp", WIDE),
    (r"share_expert_dim|projection_hidden_dim|moe_hidden_size", WIDE),
    (r"merged_hidden_size|downsample_hidden_size", WIDE),
    (r"hidden_size_per_layer_input|d_rel", HEAD_DIM),
    (r"\w*(hidden|embed|embedding)_(size|dim)|d_model|n_embd|dim|model_dim|\w*word_embed_proj_dim", HIDDEN),
    (r"projection_dim|projector_(input|output)_dim|vision_output_dim", HIDDEN),
    (r"output_dim|decoder_hidden_size|adapter_(in|out)_dim|adapter_input_size", HIDDEN),
    (r"image_text_hidden_size|dim_model_base|width|ple_embed_dim", HIDDEN),
    (r"(max|n|num)_position(_embedding)?s\w*|max_position_embeddings", LENGTH),
    (r"n_ctx|n_positions|max_target_positions|max_seq_len\w*", LENGTH),
    (r"(latent|base|output|post_conv_\w+)_channels", 32),
    (r"downsample_channels", HIDDEN),
    (r"num_pos_feats", 16),
    (r"image_size|high_res_size", IMAGE),
    (r"patch_size", PATCH),
    (r"\w*(query_num|num_query_tokens|n_latents|num_latents)", 4),
    (r"(\w*_)?sliding_window(_size)?|attention_chunk_size|window_size", 32),
    (r"state_size|ssm_state_size|mamba_d_state", 16),
    (r"(n|mamba_n)_groups", 1),
    (r"chunk_size|mamba_chunk_size", 16),
    (r"max_2d_position_embeddings", 128),
    (r"ngram_vocab_size_base", 64),
)
_PATTERNS = tuple((re.compile(pattern), size) for pattern, size in _SIZES)
_TOKEN = re.compile(r"(.+)_token_(?:id|index)|(im_start|im_end|im_newline|image_patch)_id")
_KINDS = re.compile(r"(\w*layer_types|layers_block_type|indexer_types)")
_WHICH = re.compile(r"\w*(indexes|indices|layer_ids|layers|idxs|feature_layer)")
ROPE_SECTIONS = {3: [2, 3, 3], 4: [2, 2, 2, 2]}


def tiny_config(model_type: str, **changes: Any) -> PreTrainedConfig:
    """The default config of a model type, shrunk; `changes` are applied on top."""
    tokens: dict[str, int] = {}
    values = _shrunk(default_config(model_type), tokens)
    given = _merged(_merged(values, OVERRIDES.get(model_type, {})), changes)
    return consistent(CONFIG_MAPPING[model_type](**given))


def tiny_model(model_class: Any, config: PreTrainedConfig) -> Any:
    """The model of `config`, always the same, in training mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return model_class(config).train()


def _shrunk(config: PreTrainedConfig, tokens: dict[str, int]) -> dict[str, Any]:
    """What to give to the class of `config` to get a small one; `tokens` are the special ids so far."""
    values: dict[str, Any] = {}
    known = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    kinds = {
        name: list(dict.fromkeys(value))
        for name, value in known.items()
        if _KINDS.fullmatch(name) and isinstance(value, list | tuple)
    }
    count = max([LAYERS, *map(len, kinds.values())])
    usual = vars(type(config)())
    for name, value in known.items():
        if name in ("initializer_range", "init_std") and isinstance(value, float) and value < SPREAD:
            values[name] = SPREAD
        elif name == "pad_token_id" and value is None:
            values[name] = 0
        elif isinstance(value, PreTrainedConfig):
            values[name] = {"model_type": value.model_type, **_shrunk(value, tokens)}
        elif name in kinds:
            values[name] = [kinds[name][min(i, len(kinds[name]) - 1)] for i in range(count)]
        elif (token := _TOKEN.fullmatch(name)) and isinstance(value, int) and not _sized(name):
            values[name] = tokens.setdefault(token[1] or token[2], FIRST_TOKEN + len(tokens))
        elif name == "rope_parameters" and isinstance(value, dict):
            values[name] = _rope(value)
        elif (
            _WHICH.fullmatch(name) and isinstance(value, list | tuple) and all(type(v) is int for v in value)
        ):
            values[name] = list(range(min(len(value), LAYERS)))
        elif isinstance(value, list | tuple) and value and all(type(v) is int for v in value):
            if (size := _sized(name)) is not None:
                values[name] = [min(size, v) for v in value]
        elif type(value) is int and (size := _sized(name)) is not None:
            values[name] = (
                count if size == LAYERS and _is_layers(name) else min(size, value) if value else value
            )
        elif type(value) in (int, float, str) and value != usual.get(name):  # filled in by `default_config`
            values[name] = value
    return values


def _is_layers(name: str) -> bool:
    return name in ("num_hidden_layers", "num_layers", "n_layer")


def _sized(name: str) -> int | None:
    return next((size for pattern, size in _PATTERNS if pattern.fullmatch(name)), None)


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    changed = {}
    for key, part in value.items():
        if isinstance(part, dict):
            changed[key] = _rope(part)
        elif key == "mrope_section":
            changed[key] = ROPE_SECTIONS[len(part)]
        else:
            changed[key] = part
    return changed


def _merged(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`values` with nested `changes`; a change to None takes the entry out."""
    merged = dict(values)
    for name, change in changes.items():
        if isinstance(change, dict) and isinstance(merged.get(name), dict):
            merged[name] = _merged(merged[name], change)
        elif change is None:
            merged.pop(name, None)
        else:
            merged[name] = change
    return merged
