"""A training script that freezes the wrong half of its model: the loss stays where it is.

python examples/frozen_by_mistake.py
vlmdoctor check examples/frozen_by_mistake.py:build
"""

import torch
import torch.nn.functional as F
from torch import nn

VOCAB, HIDDEN, IMAGE_TOKEN = 680, 96, 3


class LanguageModel(nn.Module):
    def __init__(self, layers=4):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.positions = nn.Embedding(32, HIDDEN)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(HIDDEN, 4, 2 * HIDDEN, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(HIDDEN)

    def forward(self, x):
        length = x.shape[1]
        x = x + self.positions(torch.arange(length, device=x.device))
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        for layer in self.layers:
            x = layer(x, src_mask=causal, is_causal=True)
        return self.norm(x)


class TinyVLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_encoder = nn.Sequential(nn.Conv2d(3, 32, 8, 8), nn.GELU(), nn.Conv2d(32, 32, 1))
        for filters in (self.vision_encoder[0].weight, self.vision_encoder[2].weight):
            nn.init.orthogonal_(filters)  # fixed filters, in the place of pretrained ones
        self.vision_proj = nn.Linear(32, HIDDEN)
        self.lm = LanguageModel()
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, input_ids, pixel_values, labels):
        x = self.lm.embed_tokens(input_ids)
        features = self.vision_proj(self.vision_encoder(pixel_values).flatten(2).transpose(1, 2))
        x = x.masked_scatter((input_ids == IMAGE_TOKEN)[..., None], features.to(x.dtype))
        logits = self.lm_head(self.lm(x))
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


def make_batch(generator, size=16):
    """Each image has one bright cell of nine; the answer after the question tells which."""
    cell = torch.randint(0, 9, (size,), generator=generator)
    pixels = torch.rand(size, 3, 3, 3, generator=generator) * 0.3
    pixels[torch.arange(size), :, cell // 3, cell % 3] = 1.0
    image = torch.full((size, 9), IMAGE_TOKEN)
    question = torch.arange(10, 16).repeat(size, 1)
    answer = torch.stack([100 + cell, torch.full((size,), 2)], dim=1)
    input_ids = torch.cat([image, question, answer], dim=1)
    labels = input_ids.clone()
    labels[:, :-2] = -100
    pixel_values = pixels.repeat_interleave(8, 2).repeat_interleave(8, 3)
    return {"input_ids": input_ids, "pixel_values": pixel_values, "labels": labels}


def freeze_vision_encoder(model):
    for name, parameter in model.named_parameters():
        # "not in" was meant: this leaves lm, lm_head and vision_proj without requires_grad
        parameter.requires_grad = "vision_encoder" in name


def build():
    torch.manual_seed(0)
    model = TinyVLM()
    freeze_vision_encoder(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return model, make_batch(torch.Generator().manual_seed(0)), optimizer


def main():
    model, _, optimizer = build()
    generator = torch.Generator().manual_seed(1)
    for step in range(60):
        loss = model(**make_batch(generator))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0:
            print(f"[Train Epoch 1] step: {step}, loss: {loss.item():.4f}")


if __name__ == "__main__":
    main()
