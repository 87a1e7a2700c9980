"""Image and question attend to each other both ways, the answer is causal; a frozen CNN in front."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F


class Backbone(nn.Module):
    def __init__(self, out):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.stage1 = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.stage2 = nn.Sequential(nn.Conv2d(32, out, 3, 2, 1), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, x):
        return self.stage2(self.stage1(self.stem(x))).flatten(2).transpose(1, 2)


class PrefixLM(nn.Module):
    def __init__(self, vocab=160, dim=64, depth=2):
        super().__init__()
        self.cnn = Backbone(40)
        self.img_proj = nn.Linear(40, dim)
        self.tok_emb = nn.Embedding(vocab, dim)
        self.pos_emb = nn.Parameter(torch.zeros(1, 64, dim))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, 4, 2 * dim, 0.1, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.ln = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocab)
        nn.init.normal_(self.tok_emb.weight, std=0.02)
        nn.init.normal_(self.pos_emb, std=0.02)
        self.cnn.requires_grad_(False)

    def train(self, mode=True):
        super().train(mode)
        self.cnn.eval()  # frozen statistics
        return self

    def forward(self, image, question, answer):
        with torch.no_grad():
            features = self.cnn(image)
        x = torch.cat([self.img_proj(features), self.tok_emb(question), self.tok_emb(answer)], dim=1)
        T, prefix = x.shape[1], x.shape[1] - answer.shape[1]
        x = x + self.pos_emb[:, :T]
        blocked = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        blocked[:prefix, :prefix] = False
        for block in self.blocks:
            x = block(x, src_mask=blocked)
        logits = self.head(self.ln(x[:, prefix - 1 : -1]))
        return {
            "logits": logits,
            "loss": F.cross_entropy(logits.flatten(0, 1), answer.flatten(), ignore_index=0),
        }


def build():
    """(model, batch, None)"""
    generator = torch.Generator().manual_seed(0)
    question = torch.randint(5, 150, (4, 6), generator=generator)
    answer = torch.randint(5, 150, (4, 5), generator=generator)
    answer[0, 4:] = 0  # padding
    image = torch.randn(4, 3, 32, 32, generator=generator)
    return PrefixLM(), {"image": image, "question": question, "answer": answer}, None
