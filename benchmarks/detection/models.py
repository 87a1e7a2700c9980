"""The models of the benchmark by family: transformers, hand-written, minivlm, with their parts named."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

import torch

from benchmarks.detection.case import Made
from benchmarks.detection.families import FROZEN
from benchmarks.detection.shrink import IMAGE, tiny_config, tiny_model
from vlmdoctor.knowledge.config_fields import image_token
from vlmdoctor.targets.synthetic import batch_for

TEXT, ANSWER = 12, 6  # words of a sample, and those at its end that are supervised

HANDWRITTEN = (
    *("nanovlm", "llava_scratch", "flamingo", "prefix_lm", "qformer", "clip"),
    *("nanogpt_images", "captioner", "hf_wrapper"),
)

# Vision-language models of `transformers` that can be built small, with a batch, on a CPU.
VLMS = (
    "aria",
    "aya_vision",
    "blip",
    "blip-2",
    "chameleon",
    "cohere2_vision",
    "cohere_compass",
    "cosmos3_edge",
    "cosmos3_omni",
    "deepseek_ocr2",
    "deepseek_vl",
    "deepseek_vl_hybrid",
    "dots3_note",
    "emu3",
    "ernie4_5_vl_moe",
    "evolla",
    "exaone4_5",
    "florence2",
    "fuyu",
    "gemma3",
    "gemma4",
    "gemma4_unified",
    "git",
    "glm46v",
    "glm4v",
    "glm4v_moe",
    "glm5_next",
    "glm_ocr",
    "glmga",
    "got_ocr2",
    "granite4_vision",
    "granite_docling",
    "hunyuan_vl",
    "hyperclovax_vision_v2",
    "idefics",
    "idefics2",
    "idefics3",
    "inkling2",
    "inkling_mm_model",
    "instructblip",
    "instructblipvideo",
    "internvl",
    "janus",
    "kimi_k25",
    "kosmos-2",
    "kosmos-2.5",
    "lfm2_vl",
    "lfm3_vl",
    "lighton_ocr",
    "llama4",
    "llava",
    "llava_next",
    "llava_next_video",
    "llava_onevision",
    "minicpm_ocr",
    "minicpmv4_6",
    "minicpmv4_7",
    "minimax_m3_vl",
    "mistral3",
    "mistral4",
    "mistral_large4",
    "mllama",
    "molmo2",
    "muse_glimmer",
    "muse_spark",
    "nemotron_h_omni",
    "ovis2",
    "paddleocr_vl",
    "paligemma",
    "pi0",
    "pix2struct",
    "pp_chart2table",
    "pp_formulanet",
    "qianfan_ocr",
    "qwen2_5_omni_thinker",
    "qwen2_5_vl",
    "qwen2_vl",
    "qwen3_5",
    "qwen3_5_moe",
    "qwen3_omni_moe_thinker",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen4_exp",
    "shieldgemma2",
    "smolvlm",
    "step3p7",
    "t5gemma2",
    "udop",
    "unlimited_ocr",
    "video_llama_3",
    "video_llava",
    "vipllava",
    "vision-encoder-decoder",
)
# Text decoders: dense, mixtures of experts, state spaces, and old ones with learned or no positions.
DECODERS = (
    "apertus",
    "arcee",
    "biogpt",
    "bloom",
    "codegen",
    "cohere",
    "cohere2",
    "ctrl",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "diffllama",
    "ernie4_5",
    "ernie4_5_moe",
    "exaone4",
    "falcon",
    "falcon_mamba",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma4_text",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt2",
    "gpt_bigcode",
    "gpt_neox",
    "gpt_oss",
    "gptj",
    "granite",
    "granitemoe",
    "helium",
    "internlm3",
    "jetmoe",
    "lfm2",
    "llama",
    "llama4_text",
    "mamba",
    "minicpm3",
    "minimax",
    "ministral3",
    "mistral",
    "mixtral",
    "modernbert-decoder",
    "mpt",
    "nanochat",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "opt",
    "persimmon",
    "phi",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
    "vaultgemma",
    "xglm",
)
_LANGUAGE = {"language": "model.language_model", "layers": "model.language_model.layers", "head": "lm_head"}
_EMBED = {"embed": "model.language_model.embed_tokens"}
_LLAVA = {"vision": "model.vision_tower", "projector": "model.multi_modal_projector", **_LANGUAGE, **_EMBED}
_QWEN = {"vision": "model.visual", "projector": "model.visual.merger", **_LANGUAGE, **_EMBED}
_IDEFICS = {
    "vision": "model.vision_model",
    "projector": "model.connector",
    "language": "model.text_model",
    "layers": "model.text_model.layers",
    "embed": "model.text_model.embed_tokens",
    "head": "lm_head",
}
PARTS: dict[str, dict[str, str]] = {
    **dict.fromkeys(("llava", "paligemma", "gemma3", "internvl", "mistral3", "llava_onevision"), _LLAVA),
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl"), _QWEN),
    **dict.fromkeys(("idefics3", "smolvlm"), _IDEFICS),
    "nanovlm": {
        "vision": "vision_encoder",
        "projector": "MP",
        "language": "decoder",
        "layers": "decoder.blocks",
        "embed": "decoder.token_embedding",
        "head": "decoder.head",
    },
    "llava_scratch": {
        "vision": "vision_tower",
        "projector": "mm_projector",
        "language": "h",
        "layers": "h",
        "embed": "wte",
        "head": "lm_head",
    },
    "nanogpt_images": {
        "vision": "eye",
        "projector": "see",
        "language": "transformer",
        "layers": "transformer.h",
        "embed": "transformer.wte",
        "head": "lm_head",
    },
    "captioner": {
        "vision": "encoder",
        "projector": "bridge",
        "language": "decoder",
        "layers": "decoder.dec",
        "embed": "decoder.emb",
        "head": "decoder.out",
    },
    "hf_wrapper": {
        "vision": "clip",
        "projector": "adapter",
        "language": "llm",
        "layers": "llm.model.layers",
        "embed": "llm.model.embed_tokens",
        "head": "llm.lm_head",
    },
    "minivlm": {
        "vision": "model.vision_encoder",
        "projector": "model.vision_proj",
        "language": "model.language_model",
        "layers": "model.language_model.layers",
        "embed": "model.language_model.embed_tokens",
        "head": "lm_head",
    },
}


def as_if_trained(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Moves weights off their initialisation: a part that is frozen stands for a pretrained one."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in parameters:
            drawn = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.add_(0.2 * drawn * parameter.std(correction=0).clamp(min=0.05))


def make(family: str, **changes: Any) -> Made:
    """A family's healthy model and batch; `changes` go into the configuration of a transformers model."""
    torch.manual_seed(0)
    if family in HANDWRITTEN:
        model, batch, loss_fn = importlib.import_module(f"benchmarks.detection.handwritten.{family}").build()
        as_if_trained(p for p in model.parameters() if not p.requires_grad)
        return Made(model.train(), batch, PARTS.get(family, {}), loss_fn)
    if family.startswith("minivlm"):
        return _minivlm(family.partition(":")[2] or "tiny")
    vision = family in VLMS
    if not vision:
        changes.pop("text_config", None)
    config = tiny_config(family, **changes)
    model = tiny_model(_model_class(config, vision), config)
    for name, parameter in model.named_parameters():
        if family in FROZEN and FROZEN[family] in name:
            parameter.requires_grad_(False)
    batch = batch_for(model, image_size=IMAGE, text=TEXT, answer=ANSWER)
    if getattr(config, "image_seq_length", None):
        config.image_seq_length = int((batch["input_ids"][0] == image_token(config)).sum())
    return Made(model, batch, PARTS.get(family, {}))


def _model_class(config: Any, vision: bool) -> Any:
    import transformers

    mapping = (
        transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        if vision
        else transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    )
    found = mapping[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _minivlm(preset: str) -> Made:
    from vlmdoctor.targets.bundled import bundled

    subject = bundled(f"minivlm:{preset}", preset).subject
    more = {"optimizer": subject.optimizer, "processor": subject.processor}
    return Made(subject.model.train(), subject.batch, PARTS["minivlm"], more=more)
