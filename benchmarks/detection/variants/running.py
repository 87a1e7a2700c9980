"""How the model is run: precision, compilation, wrapped forwards, noise."""

from __future__ import annotations

import functools
import math
import types
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.detection.case import Made, adamw
from benchmarks.detection.variants.registry import variant
from benchmarks.detection.variants.tuning import lora


@variant("llama", "llava", "qwen3_vl", "gemma3")
def bfloat16_autocast(made: Made) -> None:
    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(**batch).loss

    made.loss_fn = loss_fn


@variant("llama", "nanovlm", "llava")
def compiled(made: Made) -> None:
    made.more["optimizer"] = adamw(made.model)
    made.model = torch.compile(made.model, backend="eager")


@variant("llava", "qwen2_5_vl", "gemma3", "gpt2", attn_implementation="eager")
def eager_attention(made: Made) -> None:
    pass


def _cast(made: Made, kind: torch.dtype) -> None:
    """What is saved with the model: tables of rotary frequencies are not, and stay as exact as ever."""
    kept = [
        (module, name, module._buffers[name])
        for module in made.model.modules()
        for name in module._non_persistent_buffers_set
    ]
    made.model.to(kind)
    for module, name, table in kept:
        module._buffers[name] = table
    for name, value in made.batch.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            made.batch[name] = value.to(kind)


@variant("llava", "qwen3_vl", "gemma3", "idefics3", "internvl", "aria", "emu3")
def bfloat16_weights(made: Made) -> None:
    _cast(made, torch.bfloat16)


@variant("llava", "qwen2_5_vl", "gemma3")
def adapters_on_bfloat16(made: Made) -> None:
    _cast(made, torch.bfloat16)
    lora(made)


@variant("llava", "qwen2_5_vl", "gemma3")
def adapters_on_float16(made: Made) -> None:
    _cast(made, torch.float16)
    lora(made)


@variant("llava", "qwen3_vl", "gemma3")
def forward_compiled(made: Made) -> None:
    made.model.forward = torch.compile(made.model.forward, backend="eager")


@variant("llava", "qwen3_vl", "llama")
def forward_wrapped(made: Made) -> None:
    """A function around the bound forward takes its place."""
    forward = made.model.forward

    @functools.wraps(forward)
    def without_cache(*args: Any, **keywords: Any) -> Any:
        return forward(*args, **{"use_cache": False, **keywords})

    made.model.forward = without_cache


@variant("llava", "qwen3_vl", "gemma3", "llama")
def forward_under_autocast(made: Made) -> None:
    """As accelerate prepares it for bf16: logits come back in float32."""
    from accelerate.utils.operations import convert_outputs_to_fp32

    under = torch.autocast("cpu", torch.bfloat16)(type(made.model).forward)
    made.model.forward = types.MethodType(convert_outputs_to_fp32(under), made.model)


@variant("llava", "qwen3_vl", "gemma3")
def noise_on_embeddings(made: Made) -> None:
    """NEFTune, as the Trainer hooks it in."""

    def noisy(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        most = 5 / math.sqrt(output.shape[1] * output.shape[2])
        return output + torch.empty_like(output).uniform_(-most, most) if module.training else output

    made.model.get_input_embeddings().register_forward_hook(noisy)


@variant("gemma3", "qwen3_vl", "paligemma")
def weights_of_attention_dropped(made: Made) -> None:
    for module in made.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
