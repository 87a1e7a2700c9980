"""Small vision-language models as people write them, each healthy or with some of four faults planted."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import nn
from torch.nn import functional

from vlmdoctor.subject import Subject

VOCABULARY, WIDTH, ROWS, LENGTH, PATCHES, IMAGE = 64, 32, 4, 24, 4, 60
RANDOM, BYTES, LABELS, RATE = "random frozen vision", "pixels times 255", "ids as labels", "rate"
FAULTS = (RANDOM, BYTES, LABELS, RATE)
RULES = {
    RANDOM: "frozen-untrained",
    BYTES: "pixel-range",
    LABELS: "image-tokens-supervised",
    RATE: "learning-rate-high",
}


def causal(length: int) -> torch.Tensor:
    return torch.full((length, length), float("-inf")).triu(1)


def decoder(depth: int = 2) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 64, 0.0, batch_first=True)
    return nn.TransformerEncoder(layer, depth)


class Scattered(nn.Module):
    """Features take the places of the placeholders; returns (logits, loss)."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(VOCABULARY, WIDTH)
        self.vision = nn.Sequential(nn.Flatten(2), nn.Linear(64, WIDTH))
        self.mlp = nn.Linear(WIDTH, WIDTH)
        self.layers = decoder()
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids, pixel_values, labels=None):
        x = self.emb(input_ids)
        patches = pixel_values.unfold(2, 8, 8).unfold(3, 8, 8).reshape(len(pixel_values), -1, 64)
        features = self.mlp(self.vision(patches))
        x = x.masked_scatter((input_ids == IMAGE)[..., None].expand_as(x), features)
        logits = self.head(self.layers(x, mask=causal(x.shape[1])))
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return logits, loss


class Block(nn.Module):
    """A decoder block of one's own, with its attention written out."""

    def __init__(self) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.ff = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x):
        rows, length, _ = x.shape
        q, k, v = self.qkv(self.n1(x)).view(rows, length, 3, 4, 8).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.ff(self.n2(x))


class Prepended(nn.Module):
    """Features stand in front of the text; a convolution makes the patches, and the loss is made outside."""

    def __init__(self) -> None:
        super().__init__()
        self.tok = nn.Embedding(VOCABULARY, WIDTH)
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.GELU(), nn.Conv2d(16, 24, 2, 2), nn.Flatten(2))
        self.fc = nn.Linear(24, WIDTH)
        self.trunk = nn.ModuleList(Block() for _ in range(2))
        self.unembed = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens, image):
        features = self.fc(self.stem(image).transpose(1, 2))
        x = torch.cat([features, self.tok(tokens)], dim=1)
        for block in self.trunk:
            x = block(x)
        return self.unembed(x)[:, features.shape[1] :]


class CrossLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = Block()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, x, features):
        k, v = self.kv(features).chunk(2, dim=-1)
        return self.own(x + functional.scaled_dot_product_attention(self.q(x), k, v))


class CrossAttending(nn.Module):
    """The text looks at the features across; labels are called targets."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(VOCABULARY, WIDTH)
        self.eyes = nn.Sequential(nn.Conv2d(3, WIDTH, 8, 8), nn.Flatten(2))
        self.link = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.stack = nn.ModuleList(CrossLayer() for _ in range(2))
        self.out = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, ids, images, targets):
        features = self.link(self.eyes(images).transpose(1, 2))
        x = self.wte(ids)
        for layer in self.stack:
            x = layer(x, features)
        logits = self.out(x)
        loss = functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100
        )
        return {"logits": logits, "loss": loss}


class WithClip(nn.Module):
    """CLIP's tower of transformers inside a module of one's own."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        config = CLIPVisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16,
            patch_size=8,
        )  # fmt: skip
        self.seer = CLIPVisionModel(config)
        self.bridge = nn.Linear(32, WIDTH)
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.net = decoder()
        self.vocab = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids, pixel_values, labels):
        features = self.bridge(self.seer(pixel_values).last_hidden_state[:, 1:])
        x = self.words(input_ids)
        x[input_ids == IMAGE] = features.flatten(0, 1)
        logits = self.vocab(self.net(x, mask=causal(x.shape[1])))
        loss = functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return logits, loss


def as_trained(tower: nn.Module) -> None:
    """Moves every weight as training does: no longer within the bounds of its initialisation."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tower.parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.3 * drawn * parameter.std().nan_to_num(0.0).clamp(min=0.05))


def _data(channels: int, placeholders: bool, faults: Collection[str]):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 59, (ROWS, LENGTH), generator=generator)
    if placeholders:
        ids[:, 2 : 2 + PATCHES] = IMAGE
    pixels = torch.rand(ROWS, channels, 16, 16, generator=generator)
    pixels = pixels * 255 if BYTES in faults else (pixels - 0.5) / 0.25
    labels = ids.clone()
    if LABELS not in faults:
        labels[ids == IMAGE] = -100
    return ids, pixels, labels


def _subject(
    model: nn.Module, tower: nn.Module, batch: dict, faults: Collection[str], loss_fn=None
) -> Subject:
    if RANDOM not in faults:
        as_trained(tower)
    tower.requires_grad_(False)
    rate = 3e-2 if RATE in faults else 1e-3
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    return Subject(model, batch, optimizer=optimizer, loss_fn=loss_fn)


def scattered(faults: Collection[str] = ()) -> Subject:
    ids, pixels, labels = _data(1, True, faults)
    model = Scattered()
    return _subject(model, model.vision, {"input_ids": ids, "pixel_values": pixels, "labels": labels}, faults)


def prepended(faults: Collection[str] = ()) -> Subject:
    ids, pixels, labels = _data(3, False, faults)
    model = Prepended()

    def loss(model: nn.Module, batch: dict) -> torch.Tensor:
        logits = model(batch["tokens"], batch["image"])
        return functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["targets"][:, 1:].flatten())

    return _subject(model, model.stem, {"tokens": ids, "image": pixels, "targets": labels}, faults, loss)


def cross_attending(faults: Collection[str] = ()) -> Subject:
    ids, pixels, labels = _data(3, False, faults)
    model = CrossAttending()
    return _subject(model, model.eyes, {"ids": ids, "images": pixels, "targets": labels}, faults)


def with_clip(faults: Collection[str] = ()) -> Subject:
    ids, pixels, labels = _data(3, True, faults)
    model = WithClip()
    return _subject(model, model.seer, {"input_ids": ids, "pixel_values": pixels, "labels": labels}, faults)


WITH_PLACEHOLDERS: dict[str, Callable[..., Subject]] = {"scattered": scattered, "with_clip": with_clip}
MODELS: dict[str, Callable[..., Subject]] = {
    **WITH_PLACEHOLDERS,
    "prepended": prepended,
    "cross_attending": cross_attending,
}
PROJECTORS = {"scattered": "mlp", "with_clip": "bridge", "prepended": "fc", "cross_attending": "link"}
