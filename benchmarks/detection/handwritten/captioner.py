"""A captioner with cross-attention and a trainer of its own: the model gives logits, the trainer the loss."""

from __future__ import annotations

import torch
import torch.nn as nn

PAD, BOS, EOS = 0, 1, 2


class PatchEncoder(nn.Module):
    def __init__(self, d=48, n=2):
        super().__init__()
        self.to_patches = nn.Unfold(8, stride=8)
        self.lin = nn.Linear(3 * 64, d)
        self.pos = nn.Parameter(torch.randn(16, d) * 0.02)
        self.enc = nn.ModuleList(
            nn.TransformerEncoderLayer(d, 4, 96, 0.0, batch_first=True, norm_first=True) for _ in range(n)
        )

    def forward(self, img):
        x = self.lin(self.to_patches(img).transpose(1, 2)) + self.pos
        for layer in self.enc:
            x = layer(x)
        return x


class CaptionDecoder(nn.Module):
    def __init__(self, vocab, d=64, n=2):
        super().__init__()
        self.emb = nn.Embedding(vocab, d, padding_idx=PAD)
        self.pos = nn.Embedding(32, d)
        self.dec = nn.ModuleList(
            nn.TransformerDecoderLayer(d, 4, 128, 0.0, batch_first=True, norm_first=True) for _ in range(n)
        )
        self.norm = nn.LayerNorm(d)
        self.out = nn.Linear(d, vocab)

    def forward(self, tokens, memory, tokens_padding):
        T = tokens.shape[1]
        x = self.emb(tokens) + self.pos.weight[:T]
        causal = torch.ones(T, T, dtype=torch.bool, device=tokens.device).triu(1)
        for layer in self.dec:
            x = layer(x, memory, tgt_mask=causal, tgt_key_padding_mask=tokens_padding)
        return self.out(self.norm(x))


class Captioner(nn.Module):
    def __init__(self, vocab=140):
        super().__init__()
        self.encoder = PatchEncoder()
        self.bridge = nn.Linear(48, 64)
        self.decoder = CaptionDecoder(vocab)

    def forward(self, img, tokens, pad_mask):
        return self.decoder(tokens, self.bridge(self.encoder(img)), pad_mask)


class Trainer:
    """Teacher forcing on captions; padding is not learned."""

    criterion = nn.CrossEntropyLoss(ignore_index=PAD)

    def compute_loss(self, model, batch):
        """The caption without its last token foretells the caption without its first."""
        caption = batch["caption"]
        logits = model(batch["img"], caption[:, :-1], batch["pad_mask"][:, :-1])
        return self.criterion(logits.reshape(-1, logits.shape[-1]), caption[:, 1:].reshape(-1))


def build():
    """(model, batch, loss_fn): there are no labels; the trainer makes them of the caption."""
    caption = torch.randint(3, 140, (3, 13), generator=torch.Generator().manual_seed(0))
    caption[:, 0] = BOS
    for row, length in enumerate((13, 10, 12)):
        caption[row, length - 1] = EOS
        caption[row, length:] = PAD
    img = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return Captioner(), {"img": img, "caption": caption, "pad_mask": caption == PAD}, Trainer().compute_loss
