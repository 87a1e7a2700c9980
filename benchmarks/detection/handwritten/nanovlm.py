"""In the manner of nanoVLM: ViT, pixel shuffle, decoder with RoPE; logits and loss come as a tuple."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F


class ViTBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.ln1 = nn.LayerNorm(dim)
        self.qkv_proj = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)
        self.ln2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)
        self.heads = heads

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv_proj(self.ln1(x)).view(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out_proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.fc2(F.gelu(self.fc1(self.ln2(x))))


class ViT(nn.Module):
    def __init__(self, dim=48, depth=2, heads=4, image=32, patch=4):
        super().__init__()
        self.patch_embedding = nn.Conv2d(3, dim, patch, patch)
        self.position_embedding = nn.Parameter(torch.randn(1, (image // patch) ** 2, dim) * 0.02)
        self.blocks = nn.ModuleList(ViTBlock(dim, heads) for _ in range(depth))
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, images):
        x = self.patch_embedding(images).flatten(2).transpose(1, 2) + self.position_embedding
        for block in self.blocks:
            x = block(x)
        return self.layer_norm(x)


class ModalityProjector(nn.Module):
    def __init__(self, vit_dim, lm_dim, factor=4):
        super().__init__()
        self.factor = factor
        self.proj = nn.Linear(vit_dim * factor**2, lm_dim, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        side = int(T**0.5)
        x = x.view(B, side, side, C)
        s = self.factor
        x = x.reshape(B, side // s, s, side // s, s, C).permute(0, 1, 3, 2, 4, 5)
        return self.proj(x.reshape(B, -1, s * s * C))


def rotate_half(x):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


class RotaryEmbedding(nn.Module):
    def __init__(self, dim, base=10000.0):
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / (base ** (torch.arange(0, dim, 2).float() / dim)))

    def forward(self, position_ids):
        angles = position_ids[..., None].float() * self.inv_freq
        emb = torch.cat((angles, angles), dim=-1)
        return emb.cos(), emb.sin()


class RMSNorm(nn.Module):
    def __init__(self, dim, eps=1e-5):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class DecoderBlock(nn.Module):
    def __init__(self, dim, heads, kv_heads):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.norm1, self.norm2 = RMSNorm(dim), RMSNorm(dim)
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(dim, kv_heads * self.head_dim, bias=False)
        self.out_proj = nn.Linear(dim, dim, bias=False)
        self.gate_proj = nn.Linear(dim, 2 * dim, bias=False)
        self.up_proj = nn.Linear(dim, 2 * dim, bias=False)
        self.down_proj = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x, cos, sin, mask):
        B, T, C = x.shape
        h = self.norm1(x)
        q = self.q_proj(h).view(B, T, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(h).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        v = self.v_proj(h).view(B, T, self.kv_heads, self.head_dim).transpose(1, 2)
        cos, sin = cos[:, None].to(x.dtype), sin[:, None].to(x.dtype)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        repeat = self.heads // self.kv_heads
        k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out_proj(y.transpose(1, 2).reshape(B, T, C))
        h = self.norm2(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class LanguageModel(nn.Module):
    def __init__(self, vocab=200, dim=64, depth=2, heads=4, kv_heads=2):
        super().__init__()
        self.token_embedding = nn.Embedding(vocab, dim)
        self.rotary_embd = RotaryEmbedding(dim // heads)
        self.blocks = nn.ModuleList(DecoderBlock(dim, heads, kv_heads) for _ in range(depth))
        self.norm = RMSNorm(dim)
        self.head = nn.Linear(dim, vocab, bias=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.head.weight = self.token_embedding.weight

    def forward(self, x, attention_mask=None):
        B, T, _ = x.shape
        if attention_mask is None:
            attention_mask = torch.ones(B, T, dtype=torch.long, device=x.device)
        position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        cos, sin = self.rotary_embd(position_ids)
        causal = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()
        mask = causal[None, None] & attention_mask[:, None, None].bool()
        mask = mask | torch.eye(T, dtype=torch.bool, device=x.device)
        for block in self.blocks:
            x = block(x, cos, sin, mask)
        return self.norm(x)


class VisionLanguageModel(nn.Module):
    image_token_id = 199

    def __init__(self):
        super().__init__()
        self.vision_encoder = ViT()
        self.MP = ModalityProjector(48, 64)
        self.decoder = LanguageModel()

    def forward(self, input_ids, images, attention_mask=None, targets=None):
        image_embd = self.MP(self.vision_encoder(images))
        token_embd = self.decoder.token_embedding(input_ids)
        token_embd = token_embd.clone()
        token_embd[input_ids == self.image_token_id] = image_embd.reshape(-1, image_embd.shape[-1])
        hidden = self.decoder(token_embd, attention_mask)
        logits = self.decoder.head(hidden)
        loss = None
        if targets is not None:
            # The targets are shifted by the collator.
            loss = F.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=-100
            )
        return logits, loss


def build():
    """(model, batch, loss_fn): the loss is the second thing that the model returns."""
    model = VisionLanguageModel()
    ids = torch.randint(5, 190, (2, 14), generator=torch.Generator().manual_seed(0))
    ids[:, 1:5] = model.image_token_id
    ids[:, -1] = 2
    targets = torch.full_like(ids, -100)
    targets[:, 7:-1] = ids[:, 8:]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "images": images, "attention_mask": torch.ones_like(ids), "targets": targets}
    return model, batch, lambda model, batch: model(**batch)[1]
