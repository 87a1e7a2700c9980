"""Roles, layers and canonical names, over the parameter names that real model families have."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from torch import nn

from vlmdoctor import subject as subjects
from vlmdoctor.knowledge.parameter_names import canonical_name, layer_of, role_of

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "embed_dim": 32,
    "num_heads": 4,
    "intermediate_size": 64,
    "out_hidden_size": 32,
}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}


def qwen(name: str, **vision) -> nn.Module:
    config = getattr(hf, f"{name}Config")(text_config=TEXT | MROPE, vision_config=QWEN_VISION | vision)
    return getattr(hf, f"{name}ForConditionalGeneration")(config)


def composed(name: str, text: Callable, vision=hf.CLIPVisionConfig, **fields) -> nn.Module:
    text_config = text(**TEXT, **({"head_dim": 8} if "Gemma" in text.__name__ else {}))
    config = getattr(hf, f"{name}Config")(text_config=text_config, vision_config=vision(**VISION), **fields)
    return getattr(hf, f"{name}ForConditionalGeneration")(config)


def mllama() -> nn.Module:
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    vision = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
        "intermediate_layers_indices": [0],
        "vision_output_dim": 64,
    }
    text = TEXT | rope | {"cross_attention_layers": [1]}
    return hf.MllamaForConditionalGeneration(hf.MllamaConfig(text_config=text, vision_config=vision))


def internvl() -> nn.Module:
    vision = VISION | {"image_size": [28, 28], "patch_size": [14, 14]}
    config = hf.InternVLConfig(text_config=hf.Qwen2Config(**TEXT).to_dict(), vision_config=vision)
    return hf.InternVLForConditionalGeneration(config)


def blip2() -> nn.Module:
    config = hf.Blip2Config(
        vision_config=VISION,
        qformer_config=VISION | {"vocab_size": 64},
        text_config=hf.OPTConfig(**OPT).to_dict(),
    )
    return hf.Blip2ForConditionalGeneration(config)


OPT = {"hidden_size": 32, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
OPT["word_embed_proj_dim"] = 32

# family -> (how to build it, one word of the name of each role's modules)
FAMILIES = {
    "llava": (lambda: composed("Llava", hf.LlamaConfig), "vision_tower", "multi_modal_projector"),
    "llava-next": (lambda: composed("LlavaNext", hf.LlamaConfig), "vision_tower", "multi_modal_projector"),
    "llava-onevision": (
        lambda: composed("LlavaOnevision", hf.Qwen2Config, hf.SiglipVisionConfig),
        "vision_tower",
        "multi_modal_projector",
    ),
    "paligemma": (
        lambda: composed("PaliGemma", hf.GemmaConfig, hf.SiglipVisionConfig),
        "vision_tower",
        "multi_modal_projector",
    ),
    "gemma3": (
        lambda: composed("Gemma3", hf.Gemma3TextConfig, hf.SiglipVisionConfig),
        "vision_tower",
        "multi_modal_projector",
    ),
    "qwen2-vl": (lambda: qwen("Qwen2VL"), "visual", "merger"),
    "qwen2.5-vl": (lambda: qwen("Qwen2_5_VL", fullatt_block_indexes=[1]), "visual", "merger"),
    "qwen3-vl": (lambda: qwen("Qwen3VL", deepstack_visual_indexes=[1]), "visual", "merger"),
    "idefics3": (
        lambda: composed("Idefics3", hf.LlamaConfig, lambda **k: k),
        "vision_model",
        "connector",
    ),
    "smolvlm": (lambda: composed("SmolVLM", hf.LlamaConfig, lambda **k: k), "vision_model", "connector"),
    "internvl": (internvl, "vision_tower", "multi_modal_projector"),
    "mllama": (mllama, "vision_model", "multi_modal_projector"),
    "blip2": (blip2, "vision_model", "language_projection"),
}
LANGUAGE = ("language_model", "text_model")
ALSO_PROJECTORS = ("image_newline", "query_tokens", "qformer", "deepstack_merger_list")


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_of_vision_language_families(family: str) -> None:
    build, vision, projector = FAMILIES[family]
    with torch.device("meta"):
        model = build()
    seen = set()
    for raw, _ in model.named_parameters():
        name = canonical_name(raw)
        parts = name.split(".")
        if projector in parts or set(ALSO_PROJECTORS) & set(parts):
            expected = "projector"
        elif vision in parts:
            expected = "vision"
        elif "lm_head" in parts:
            expected = "head"
        else:
            assert set(LANGUAGE) & set(parts), name
            expected = "language"
        assert role_of(name) == expected, name
        seen.add(expected)
    assert {"vision", "projector", "language"} <= seen
    stacks = {layer.rpartition(".")[0] for layer, _ in map(layer_of, dict(model.named_parameters())) if layer}
    assert len([stack for stack in stacks if role_of(f"{stack}.0.weight") == "language"]) == 1
    assert [stack for stack in stacks if role_of(f"{stack}.0.weight") == "vision"]


@pytest.mark.parametrize(
    ("config", "model_class"),
    [
        (lambda: hf.LlamaConfig(**TEXT), hf.LlamaForCausalLM),
        (lambda: hf.Qwen3Config(**TEXT, head_dim=8), hf.Qwen3ForCausalLM),
        (lambda: hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64), hf.GPT2LMHeadModel),
        (lambda: hf.GPTNeoXConfig(**TEXT), hf.GPTNeoXForCausalLM),
        (lambda: hf.OPTConfig(**OPT), hf.OPTForCausalLM),
        (lambda: hf.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=64), hf.BloomForCausalLM),
    ],
    ids=["llama", "qwen3", "gpt2", "gpt-neox", "opt", "bloom"],
)
def test_decoders_are_language_and_head(config: Callable, model_class: type) -> None:
    with torch.device("meta"):
        model = model_class(config())
    roles = {name: role_of(name) for name, _ in model.named_parameters()}
    assert set(roles.values()) <= {"language", "head"}
    assert all((role == "head") == name.startswith(("lm_head", "embed_out")) for name, role in roles.items())
    assert {layer_of(name)[1] for name in roles} == {None, 0, 1}


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.vision_encoder.blocks.0.attn.qkv.weight", "vision"),
        ("model.vision_proj.vision_proj.0.weight", "projector"),
        ("vision_proj.weight", "projector"),
        ("lm.layers.0.mlp.weight", "language"),
        ("lm_head.weight", "head"),
        ("model.language_model.embed_tokens.weight", "language"),
        ("model.mm_projector.0.weight", "projector"),
        ("model.vision_tower.vision_tower.vision_model.embeddings.class_embedding", "vision"),
        ("mlp1.1.weight", "projector"),
        ("vpm.encoder.layers.0.mlp.fc1.weight", "vision"),
        ("resampler.query", "projector"),
        ("llm.model.layers.0.mlp.up_proj.weight", "language"),
        ("MP.proj.weight", "projector"),
        ("decoder.blocks.0.mlp.weight", "language"),
        ("Qformer.bert.encoder.layer.0.output.dense.weight", "projector"),
        ("llm_proj.weight", "projector"),
        ("llama_proj.weight", "projector"),
        ("text_projection.weight", "language"),
        ("model.vision_backbone.image_projector.w1.weight", "projector"),
        ("model.vqmodel.encoder.conv_in.weight", "vision"),
        ("model.embed_tokens_extend.audio_embed.encoder.encoders.0.weight", "other"),
        ("logit_scale", "other"),
    ],
)
def test_role_of(name: str, role: str) -> None:
    assert role_of(name) == role


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("_orig_mod.vision_proj.weight", "vision_proj.weight"),
        ("module._orig_mod.vision_proj.weight", "vision_proj.weight"),
        ("module.module.lm_head.weight", "lm_head.weight"),
        ("_fsdp_wrapped_module.model._fsdp_wrapped_module.layers.0.weight", "model.layers.0.weight"),
        ("model.layers.0._checkpoint_wrapped_module.mlp.weight", "model.layers.0.mlp.weight"),
        ("base_model.model.lm_head.weight", "lm_head.weight"),
        (
            "base_model.model.model.layers.1.self_attn.q_proj.base_layer.weight",
            "model.layers.1.self_attn.q_proj.weight",
        ),
        (
            "base_model.model.model.layers.1.self_attn.q_proj.lora_A.default.weight",
            "model.layers.1.self_attn.q_proj.lora_A.default.weight",
        ),
        ("base_model.model.vision_proj.modules_to_save.default.weight", "vision_proj.weight"),
        ("vision_proj.weight", "vision_proj.weight"),
    ],
)
def test_canonical_name(raw: str, name: str) -> None:
    assert canonical_name(raw) == name
    assert canonical_name(name) == name


def test_names_survive_compiling_and_wrapping() -> None:
    model = nn.ModuleDict({"vision_proj": nn.Linear(2, 2), "lm_head": nn.Linear(2, 2)})
    wrapped = nn.DataParallel(torch.compile(model))
    assert [canonical_name(name) for name, _ in wrapped.named_parameters()] == [
        name for name, _ in model.named_parameters()
    ]


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("model.layers.3.mlp.up_proj.weight", ("model.layers.3", 3)),
        ("model.layers.3.mlp.experts.7.up_proj.weight", ("model.layers.3", 3)),
        ("visual.blocks.11.norm1.weight", ("visual.blocks.11", 11)),
        ("transformer.h.0.ln_1.bias", ("transformer.h.0", 0)),
        ("vision_model.encoder.layer.2.attention.weight", ("vision_model.encoder.layer.2", 2)),
        ("lm_head.weight", ("", None)),
        ("multi_modal_projector.0.weight", ("", None)),
    ],
)
def test_layer_of(name: str, layer: tuple[str, int | None]) -> None:
    assert layer_of(name) == layer


def test_patterns_match_whole_parts() -> None:
    patterns = subjects.compile_patterns(["lm", "vision_*", "layers.?.mlp"])
    assert patterns["lm"].search("lm.layers.0.weight")
    assert not patterns["lm"].search("lm_head.weight")
    assert patterns["vision_*"].search("model.vision_proj.weight")
    assert patterns["layers.?.mlp"].search("model.layers.3.mlp.weight")
    assert not patterns["layers.?.mlp"].search("model.layers.3.attention.weight")


def test_optimizers_are_unpacked() -> None:
    one, two = object(), object()
    assert subjects.optimizers(None) == []
    assert subjects.optimizers(one) == [one]
    assert subjects.optimizers((one, two)) == [one, two]
    assert subjects.optimizers({"a": one}) == [one]


def test_vocab_size() -> None:
    with torch.device("meta"):
        assert subjects.vocab_size(hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT))) == 64
        assert subjects.vocab_size(nn.ModuleDict({"lm_head": nn.Linear(4, 9)})["lm_head"]) is None
    assert subjects.vocab_size(nn.Linear(2, 2)) is None
