"""Models of a few thousand parameters and batches for them."""

from __future__ import annotations

from typing import Any

import torch

from minivlm.config import MiniVLMConfig
from minivlm.model import MiniVLMForConditionalGeneration

IMAGE = 3
SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "vision_hidden_size": 16,
    "vision_intermediate_size": 16,
    "vision_num_hidden_layers": 1,
    "vision_num_attention_heads": 2,
}


def config(**changes: Any) -> MiniVLMConfig:
    """A configuration whose images take four tokens."""
    return MiniVLMConfig(**{**SIZES, **changes})


def model(seed: int = 0, **changes: Any) -> MiniVLMForConditionalGeneration:
    """A model in evaluation mode, with embeddings large enough that every token matters."""
    torch.manual_seed(seed)
    made = MiniVLMForConditionalGeneration(config(**changes)).eval()
    with torch.no_grad():
        made.get_input_embeddings().weight.mul_(10)
    return made


def text(batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Token ids without special tokens, [batch, length]."""
    return torch.randint(4, 50, (batch, length), generator=torch.Generator().manual_seed(seed))


def pictures(count: int, seed: int = 0, side: int = 16) -> torch.Tensor:
    """Pixel values [count, 3, side, side]."""
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def with_images(batch: int = 2, length: int = 12, images: int = 1) -> dict[str, torch.Tensor]:
    """A batch whose samples begin with a word and `images` images of four tokens."""
    ids = text(batch, length)
    ids[:, 1 : 1 + 4 * images] = IMAGE
    return {"input_ids": ids, "pixel_values": pictures(batch * images)}
