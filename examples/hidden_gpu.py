"""A training script that hides the GPUs from itself, and trains on the CPU without a word.

python examples/hidden_gpu.py
vlmdoctor check-env examples/hidden_gpu.py
"""

import os
import time

import torch
import torch.nn.functional as F
from torch import nn

# left over from debugging a CUDA assert
os.environ["CUDA_VISIBLE_DEVICES"] = ""

VOCAB, HIDDEN, IMAGE_TOKEN = 680, 96, 3


class TinyVLM(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_encoder = nn.Sequential(nn.Conv2d(3, 32, 8, 8), nn.GELU(), nn.Conv2d(32, 32, 1))
        self.vision_proj = nn.Linear(32, HIDDEN)
        self.embed_tokens = nn.Embedding(VOCAB, HIDDEN)
        self.positions = nn.Embedding(32, HIDDEN)
        layer = nn.TransformerEncoderLayer(
            HIDDEN, 4, 2 * HIDDEN, dropout=0.0, batch_first=True, norm_first=True
        )
        self.lm = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(HIDDEN)
        self.lm_head = nn.Linear(HIDDEN, VOCAB, bias=False)

    def forward(self, input_ids, pixel_values, labels):
        length = input_ids.shape[1]
        x = self.embed_tokens(input_ids)
        features = self.vision_proj(self.vision_encoder(pixel_values).flatten(2).transpose(1, 2))
        x = x.masked_scatter((input_ids == IMAGE_TOKEN)[..., None], features.to(x.dtype))
        x = x + self.positions(torch.arange(length, device=x.device))
        causal = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        logits = self.lm_head(self.norm(self.lm(x, mask=causal, is_causal=True)))
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


def build():
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = TinyVLM().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = make_batch(torch.Generator().manual_seed(0))
    return model, {name: tensor.to(device) for name, tensor in batch.items()}, optimizer


def main():
    model, batch, optimizer = build()
    device = batch["input_ids"].device
    print(f"training on {device}")
    generator = torch.Generator().manual_seed(1)
    started = time.perf_counter()
    for step in range(30):
        batch = {name: tensor.to(device) for name, tensor in make_batch(generator).items()}
        loss = model(**batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 5 == 0:
            print(f"[Train Epoch 1] step: {step}, loss: {loss.item():.4f}")
    print(f"30 steps in {time.perf_counter() - started:.1f} s on {device}")


if __name__ == "__main__":
    main()
