"""Weights, tables and numbers: not loaded, spoiled, of another type, or initialised badly."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.detection.case import Made
from benchmarks.detection.faults.plant import fault, graft

ROPE = "ROPE* rope*"


@fault("F01-no-key-matched", families="llava llama minivlm", rules="CKPT*", at="")
def no_key_matched(made: Made) -> None:
    """load_state_dict(strict=False) of a checkpoint whose names all have another prefix."""
    # What was trained elsewhere has nothing in common with the random weights that are kept for want of it.
    generator = torch.Generator().manual_seed(5)
    made.more["checkpoint"] = {
        f"module.model.{name}": value.flatten()[torch.randperm(value.numel(), generator=generator)].view_as(
            value
        )
        for name, value in made.model.state_dict().items()
    }
    made.model.load_state_dict(made.more["checkpoint"], strict=False)


@fault(
    "F02-language-model-not-loaded",
    families="llava qwen2_5_vl minivlm",
    rules="CKPT*",
    at="language language_model",
)
def language_not_loaded(made: Made) -> None:
    """The language model's names have another prefix in the checkpoint."""
    trained = {
        name.replace(made.parts["language"], "base.lm"): value for name, value in _trained(made).items()
    }
    made.model.load_state_dict(trained, strict=False)
    made.more["checkpoint"] = trained


@fault(
    "F03-projector-not-in-the-checkpoint",
    families="llava internvl minivlm",
    rules="CKPT*",
    at="part:projector",
)
def projector_not_saved(made: Made) -> None:
    """The checkpoint lacks the projector, which starts anew."""
    generator = torch.Generator().manual_seed(6)
    for parameter in made["projector"].parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(0, 0.02, generator=generator)
    trained = {name: v for name, v in _trained(made).items() if not name.startswith(made.parts["projector"])}
    made.model.load_state_dict(trained, strict=False)
    made.more["checkpoint"] = trained


@fault(
    "A18-tie-broken",
    families="llava internvl llama",
    rules="CKPT* PARAM* tie* CFG*",
    at="lm_head embed_tokens",
    tie_word_embeddings=True,
    text_config={"tie_word_embeddings": True},
)
def tie_broken(made: Made) -> None:
    """The configuration ties head and embeddings, and they are two tensors."""
    made.model.lm_head.weight = nn.Parameter(made.model.lm_head.weight.detach() * 1.1)


@fault("A06-frequencies-garbage", families="llava llama qwen2_5_vl nanovlm", rules=ROPE, at="inv_freq rotary")
def frequencies_garbage(made: Made) -> None:
    """The rotary frequencies hold whatever was in memory: built on the meta device and never filled."""
    generator = torch.Generator().manual_seed(3)
    for buffer in _frequencies(made):
        buffer.copy_(torch.rand(buffer.shape, generator=generator) * 1e-3)


@fault("A06-frequencies-zero", families="llava llama qwen2_5_vl", rules=f"{ROPE} MASK*", at="inv_freq rotary")
def frequencies_zero(made: Made) -> None:
    """The rotary frequencies are zero: no position is known."""
    for buffer in _frequencies(made):
        buffer.zero_()


@fault("A03-theta-default", families="llama llava qwen3", rules=ROPE, at="inv_freq rotary")
def theta_default(made: Made) -> None:
    """The table is built with theta 10,000 where the configuration says 1,000,000."""
    config = made.model.config
    config = getattr(config, "text_config", config)
    config.rope_parameters["rope_theta"] = 1_000_000.0


@fault(
    "A05-frequencies-in-bfloat16",
    families="llama llava",
    rules=f"{ROPE} NUM*",
    at="inv_freq rotary",
    max_position_embeddings=4096,
    text_config={"max_position_embeddings": 4096},
)
def frequencies_in_bfloat16(made: Made) -> None:
    """model.to(torch.bfloat16) rounds the rotary frequencies too."""
    made.model.to(torch.bfloat16)
    if "pixel_values" in made.batch:
        made.batch["pixel_values"] = made.batch["pixel_values"].bfloat16()


@fault(
    "A01-table-from-hidden-size",
    families="llama llava nanovlm qwen3",
    rules="rope-table-dim",
    at="inv_freq rotary",
)
def table_from_hidden_size(made: Made) -> None:
    """The rotary table is built from hidden_size, not from head_dim."""
    for module in made.model.modules():
        if isinstance(getattr(module, "inv_freq", None), Tensor) and "Vision" not in type(module).__name__:
            table = 1.0 / (10000.0 ** (torch.arange(0, 64, 2).float() / 64))
            module.register_buffer("inv_freq", table, persistent=False)


@fault("A04-interleaved-table-half-rotation", families="llama llava nanovlm", rules=ROPE, at="")
def mixed_layouts(made: Made) -> None:
    """The table repeats each frequency in pairs, the rotation pairs the two halves."""
    for module in made.model.modules():
        if isinstance(getattr(module, "inv_freq", None), Tensor) and "Vision" not in type(module).__name__:
            alter_both(module)


@fault(
    "X-nan-in-a-weight",
    families="llava llama minivlm",
    rules="non-finite NUM*",
    at="part:projector lm_head layers",
)
def nan_in_a_weight(made: Made) -> None:
    """One weight is NaN."""
    module = made["projector"] if made.parts else made.model.model.layers[1]
    next(module.parameters()).data.view(-1)[0] = math.nan


@fault("E21-overflow-in-float16", families="llava nanovlm", rules="non-finite NUM*", at="part:projector")
def overflow_in_float16(made: Made) -> None:
    """Activations behind the projector pass 65,504 in float16."""
    made.model.half()
    for name, value in made.batch.items():
        if value.is_floating_point():
            made.batch[name] = value.half()
    for parameter in made["projector"].parameters():
        parameter.data.fill_(60_000.0)


@fault(
    "X-embeddings-too-large",
    families="llava llama minivlm",
    rules="initial-loss",
    at="",
    tie_word_embeddings=True,
    text_config={"tie_word_embeddings": True},
)
def embeddings_too_large(made: Made) -> None:
    """Tied embeddings with a standard deviation of 3."""
    made.model.get_input_embeddings().weight.data.normal_(0, 3, generator=torch.Generator().manual_seed(0))


@fault(
    "F09-two-precisions",
    families="llava internvl nanovlm minivlm",
    rules="CFG* NUM* dtype*",
    at="part:projector part:vision",
)
def two_precisions(made: Made) -> None:
    """The tower is in bfloat16, the projector in float32."""
    made["vision"].to(torch.bfloat16)
    if "nanovlm" in type(made.model).__module__:
        made.batch["images"] = made.batch["images"].bfloat16()


@fault(
    "A09-projector-width",
    families="llava internvl llava_scratch",
    rules="CFG* forward-raises",
    at="part:projector",
)
def projector_width(made: Made) -> None:
    """The projector expects wider features than the tower makes."""
    linear = next(m for m in made["projector"].modules() if isinstance(m, nn.Linear))
    linear.weight = nn.Parameter(torch.randn(linear.out_features, linear.in_features * 2) * 0.02)
    linear.in_features *= 2


def _trained(made: Made) -> dict[str, Tensor]:
    """The weights as training would have left them."""
    generator = torch.Generator().manual_seed(5)
    noise: dict[int, Tensor] = {}  # tied weights stay equal

    def moved(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        drawn = noise.setdefault(value.data_ptr(), 0.05 * torch.randn(value.shape, generator=generator))
        return value + drawn

    return {name: moved(value) for name, value in made.model.state_dict().items()}


def _frequencies(made: Made) -> list[Tensor]:
    found = [b for name, b in made.model.named_buffers() if "inv_freq" in name and "vis" not in name]
    assert found, "no rotary frequencies in this model"
    return found


def alter_both(module: nn.Module) -> None:
    """Repeats the frequencies of a rotary table in pairs."""

    def paired(table: Tensor) -> Tensor:
        return table[..., : table.shape[-1] // 2].repeat_interleave(2, dim=-1)

    def forward(original: Any, *args: Any, **kwargs: Any) -> Any:
        cos, sin = original(*args, **kwargs)
        return paired(cos), paired(sin)

    graft(module, forward)
