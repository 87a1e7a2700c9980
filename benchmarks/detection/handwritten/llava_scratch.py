"""LLaVA from scratch: features are spliced into the text, labels grow with them; learned positions."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

IGNORE_INDEX, IMAGE_TOKEN_INDEX = -100, -200


class VisionTower(nn.Module):
    def __init__(self, width=48, layers=3, heads=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, kernel_size=8, stride=8, bias=False)
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positional_embedding = nn.Parameter(torch.randn(17, width) * width**-0.5)
        self.ln_pre = nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )

    def forward(self, images):
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.ln_pre(x)
        hidden = [x]
        for layer in self.layers:
            hidden.append(layer(hidden[-1]))
        return hidden[-2][:, 1:]  # the second last layer, without the class token


class GPTBlock(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x, mask):
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, attn_mask=mask, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class LlavaModel(nn.Module):
    def __init__(self, vocab=180, width=64, layers=2, heads=4, context=64):
        super().__init__()
        self.vision_tower = VisionTower()
        self.mm_projector = nn.Sequential(nn.Linear(48, width), nn.GELU(), nn.Linear(width, width))
        self.wte = nn.Embedding(vocab, width)
        self.wpe = nn.Embedding(context, width)
        self.h = nn.ModuleList(GPTBlock(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocab, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def prepare_inputs_labels_for_multimodal(self, input_ids, labels, images):
        features = self.mm_projector(self.vision_tower(images))
        embeds, targets = [], []
        for ids, label, feature in zip(input_ids, labels, features, strict=True):
            at = int((ids == IMAGE_TOKEN_INDEX).nonzero()[0])
            embeds.append(torch.cat([self.wte(ids[:at]), feature, self.wte(ids[at + 1 :])]))
            ignored = torch.full((len(feature),), IGNORE_INDEX, dtype=label.dtype)
            targets.append(torch.cat([label[:at], ignored, label[at + 1 :]]))
        return torch.stack(embeds), torch.stack(targets)

    def forward(self, input_ids, labels, images):
        x, labels = self.prepare_inputs_labels_for_multimodal(input_ids, labels, images)
        T = x.shape[1]
        x = x + self.wpe(torch.arange(T, device=x.device))
        mask = torch.full((T, T), float("-inf"), device=x.device).triu(1)
        for block in self.h:
            x = block(x, mask)
        logits = self.lm_head(self.ln_f(x))
        shift_logits, shift_labels = logits[:, :-1].contiguous(), labels[:, 1:].contiguous()
        loss = F.cross_entropy(shift_logits.view(-1, shift_logits.size(-1)), shift_labels.view(-1))
        return {"loss": loss, "logits": logits}


def build():
    """(model, batch, None)"""
    ids = torch.randint(5, 170, (3, 12), generator=torch.Generator().manual_seed(0))
    ids[:, 2] = IMAGE_TOKEN_INDEX
    ids[:, -1] = 2
    labels = ids.clone()
    labels[:, :6] = IGNORE_INDEX
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return LlavaModel(), {"input_ids": ids, "labels": labels, "images": images}, None
