"""A module around a language model and a tower of transformers: features go in as inputs_embeds."""

from __future__ import annotations

import torch
import torch.nn as nn
from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

IMAGE = 150


class MyVLM(nn.Module):
    def __init__(self):
        super().__init__()
        vision = CLIPVisionConfig(
            hidden_size=48, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, image_size=32,
            patch_size=8,
        )  # fmt: skip
        language = LlamaConfig(
            vocab_size=151, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0,
        )  # fmt: skip
        self.clip = CLIPVisionModel(vision)
        self.adapter = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 64))
        self.llm = LlamaForCausalLM(language)

    def forward(self, tokens, image, attn_mask, tgt):
        hidden = self.clip(pixel_values=image, output_hidden_states=True).hidden_states[-2][:, 1:]
        embeds = self.llm.get_input_embeddings()(tokens)
        where = (tokens == IMAGE)[..., None]
        embeds = embeds.masked_scatter(where, self.adapter(hidden).to(embeds.dtype))
        return self.llm(inputs_embeds=embeds, attention_mask=attn_mask, labels=tgt)


class Batch(dict):
    """As a collator of one's own gives it."""


def build():
    """(model, batch, None): tokens, image, attn_mask, tgt."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(5, 150, (3, 28), generator=generator)
    tokens[:, 0], tokens[:, 1:17], tokens[:, -1] = 1, IMAGE, 2
    attn_mask = torch.ones_like(tokens)
    tgt = tokens.clone()
    tgt[:, :20] = -100
    tokens[1, 25:], tgt[1, 25:], attn_mask[1, 25:] = 0, -100, 0
    image = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return MyVLM(), Batch(tokens=tokens, image=image, attn_mask=attn_mask, tgt=tgt), None
