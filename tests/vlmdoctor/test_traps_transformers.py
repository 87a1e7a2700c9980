"""Healthy models of `transformers` whose design looks like a fault: no finding after any step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import transformers as hf
from tiny_vlm import run
from torch import Tensor, nn

from vlmdoctor.watching.watcher import Watcher

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 99,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
IMAGE = 98


def llava() -> nn.Module:
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**TEXT),
        vision_config=hf.CLIPVisionConfig(**VISION),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
    )
    return hf.LlavaForConditionalGeneration(config)


def llava_batch(number: int) -> dict[str, Tensor]:
    ids, labels = text(number, image_tokens=4)
    return {"input_ids": ids, "labels": labels, "pixel_values": torch.randn(4, 3, 28, 28)}


def text(number: int, image_tokens: int) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(number)
    ids = torch.randint(1, 9, (4, 12), generator=drawn)
    ids[:, :image_tokens] = IMAGE
    labels = ids.clone()
    labels[:, :image_tokens] = -100
    return ids, labels


def qwen() -> nn.Module:
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "num_heads": 4,
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
        "patch_size": 14,
    }
    config = hf.Qwen2_5_VLConfig(text_config=TEXT | rope, vision_config=vision, image_token_id=IMAGE)
    config.vision_start_token_id = 97
    return hf.Qwen2_5_VLForConditionalGeneration(config)


def qwen_batch(number: int) -> dict[str, Tensor]:
    ids, labels = text(number, image_tokens=2)
    ids[:, 0] = 97
    return {
        "input_ids": ids,
        "labels": labels,
        "pixel_values": torch.randn(4 * 4, 3 * 2 * 14 * 14),
        "image_grid_thw": torch.tensor([[1, 2, 2]] * 4),
        "mm_token_type_ids": (ids == IMAGE).long(),
    }


def mllama() -> nn.Module:
    """The gates of its cross-attention are zero at first: nothing behind them has a gradient."""
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
        "max_num_tiles": 1,
        "supported_aspect_ratios": [[1, 1]],
    }
    config = hf.MllamaConfig(
        text_config=TEXT | rope | {"cross_attention_layers": [1]},
        vision_config=vision,
        image_token_index=IMAGE,
    )
    return hf.MllamaForConditionalGeneration(config)


def mllama_batch(number: int) -> dict[str, Tensor]:
    ids, labels = text(number, image_tokens=1)
    return {
        "input_ids": ids,
        "labels": labels,
        "pixel_values": torch.randn(4, 1, 1, 3, 28, 28),
        "aspect_ratio_ids": torch.ones(4, 1, dtype=torch.long),
        "aspect_ratio_mask": torch.ones(4, 1, 1, dtype=torch.long),
        "cross_attention_mask": torch.ones(4, 12, 1, 1, dtype=torch.long),
    }


def silent(step: int, watcher: Watcher) -> None:
    report = watcher.report()
    told = [(finding.rule, finding.message, finding.at) for finding in report.findings]
    assert (step, report.crashed, told) == (step, (), [])


@pytest.mark.parametrize(
    ("build", "data"),
    [
        pytest.param(llava, llava_batch, id="llava, features of the last layer but one"),
        pytest.param(qwen, qwen_batch, id="qwen2.5-vl"),
        pytest.param(mllama, mllama_batch, id="mllama, gates at zero"),
    ],
)
def test_silent_by_design(build: Callable[[], nn.Module], data: Callable) -> None:
    torch.manual_seed(0)
    run(build().train(), data=data, steps=12, warmup=3, at_each=silent)


def test_experts_that_were_not_routed_to() -> None:
    config = hf.Qwen3MoeConfig(
        **TEXT,
        head_dim=8,
        moe_intermediate_size=16,
        num_experts=16,
        num_experts_per_tok=1,
        decoder_sparse_step=1,
    )
    torch.manual_seed(0)
    model = hf.Qwen3MoeForCausalLM(config).train()

    def data(number: int) -> dict[str, Tensor]:
        ids, labels = text(number, image_tokens=0)
        return {"input_ids": ids, "labels": labels}

    run(model, data=data, steps=8, at_each=silent)
