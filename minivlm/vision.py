"""The vision encoder: a small one of our own that learns on a CPU, or CLIP or SigLIP from transformers.

Shapes:
    M images, P patches, V width, G patches along one side
"""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel
from transformers.activations import ACT2FN

from minivlm.config import MiniVLMConfig
from minivlm.errors import UserError, reason_of

# kind -> (model, configuration, whether its first output is a class token and no patch)
LIBRARY = {
    "clip": (CLIPVisionModel, CLIPVisionConfig, True),
    "siglip": (SiglipVisionModel, SiglipVisionConfig, False),
}


def vision_encoder(config: MiniVLMConfig) -> nn.Module:
    """The encoder that `config.vision_kind` names; it maps [M, 3, S, S] to features [M, P, V]."""
    return ConvViT(config) if config.vision_kind == "conv_vit" else LibraryEncoder(config)


class ConvViT(nn.Module):
    """A short convolutional stem, then transformer layers.

    The stem matters: with a plain patch embedding a model this small never learns to see within minutes,
    while its loss falls just as nicely.
    """

    def __init__(self, config: MiniVLMConfig) -> None:
        super().__init__()
        width, halvings = config.vision_hidden_size, config.patch_size.bit_length() - 1
        # Each stage is twice as wide as the one before; in fours, since GroupNorm has four groups.
        channels = [3, *(max(16, (width >> (halvings - 1 - i)) // 4 * 4) for i in range(halvings))]
        stages = []
        for before, after in itertools.pairwise(channels):
            stages += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GroupNorm(4, after), nn.GELU()]
        self.stem = nn.Sequential(*stages, nn.Conv2d(channels[-1], width, 1))
        side = config.image_size // config.patch_size
        self.position_embedding = nn.Parameter(torch.zeros(1, side * side, width))
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.vision_num_hidden_layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[M, 3, S, S] -> [M, P, V]."""
        x = self.stem(pixel_values).flatten(2).transpose(1, 2)  # [M, P, V]
        x = x + self.position_embedding
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class VisionLayer(nn.Module):
    """Attention over all patches and a feed-forward layer, each normalised before and added after."""

    def __init__(self, config: MiniVLMConfig) -> None:
        super().__init__()
        width = config.vision_hidden_size
        self.heads = config.vision_num_attention_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, config.vision_intermediate_size),
            nn.GELU(),
            nn.Linear(config.vision_intermediate_size, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        M, P, V = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(M, P, 3, self.heads, V // self.heads).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(M, P, V))
        return x + self.mlp(self.norm2(x))


class LibraryEncoder(nn.Module):
    """transformers' CLIP or SigLIP, without CLIP's class token."""

    def __init__(self, config: MiniVLMConfig) -> None:
        super().__init__()
        model_class, config_class, self.has_class_token = LIBRARY[config.vision_kind]
        options: dict[str, object] = {"vision_use_head": False} if config.vision_kind == "siglip" else {}
        if config.vision_hidden_act is not None:
            if config.vision_hidden_act not in ACT2FN:
                raise UserError(
                    f"vision_hidden_act is '{config.vision_hidden_act}', which transformers does not know."
                )
            options["hidden_act"] = config.vision_hidden_act
        if config.vision_layer_norm_eps is not None:
            options["layer_norm_eps"] = config.vision_layer_norm_eps
        library_config = config_class(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.vision_hidden_size,
            intermediate_size=config.vision_intermediate_size,
            num_hidden_layers=config.vision_layers_used,
            num_attention_heads=config.vision_num_attention_heads,
            **options,
        )
        library_config._attn_implementation = "sdpa"
        self.tower = model_class(library_config)
        if config.vision_kind == "clip" or config.vision_layer != -1:
            # Layers behind the features that are used would never get a gradient, and stop DDP: none is kept.
            name = next(name for name, _ in self.tower.named_modules() if name.endswith("post_layernorm"))
            self.tower.set_submodule(name, nn.Identity())

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[M, 3, S, S] -> [M, P, V]."""
        x = self.tower(pixel_values).last_hidden_state
        return x[:, 1:] if self.has_class_token else x


def library_settings(path: str) -> dict[str, object]:
    """The `MiniVLMConfig` fields of the CLIP or SigLIP checkpoint at `path` (a folder or hub name).

    Raises:
        UserError: There is nothing that can be loaded, or it is another kind of model.
    """
    from transformers import AutoConfig

    if path.startswith(("/", ".", "~")) and not Path(path).expanduser().is_dir():
        raise UserError(f"there is no folder '{path}' to take a vision encoder from.")
    try:
        found = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        where = "is no folder here and" if not Path(path).exists() else "holds no model:"
        reason = reason_of(error)
        raise UserError(f"the vision encoder '{path}' {where} can't be loaded: {reason}") from error
    vision = getattr(found, "vision_config", None) or found
    kind = vision.model_type.removesuffix("_vision_model")
    if kind not in LIBRARY:
        raise UserError(
            f"the vision encoder '{path}' is of type '{vision.model_type}'; give one of CLIP or SigLIP."
        )
    return {
        "vision_kind": kind,
        "image_size": vision.image_size,
        "patch_size": vision.patch_size,
        "vision_hidden_size": vision.hidden_size,
        "vision_intermediate_size": vision.intermediate_size,
        "vision_num_hidden_layers": vision.num_hidden_layers,
        "vision_num_attention_heads": vision.num_attention_heads,
        "vision_hidden_act": vision.hidden_act,
        "vision_layer_norm_eps": vision.layer_norm_eps,
    }


def load_weights(encoder: LibraryEncoder, path: str) -> None:
    """Loads the checkpoint at `path` into `encoder`; raises `UserError` unless every weight is found."""
    model_class = type(encoder.tower)
    try:
        loaded, report = model_class.from_pretrained(
            path, config=encoder.tower.config, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = reason_of(error)
        raise UserError(f"the vision encoder's weights in '{path}' can't be loaded: {reason}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"'{path}' lacks {len(missing)} weights of the vision encoder, such as '{missing[0]}'; "
            f"give a checkpoint that holds them."
        )
    weights = loaded.state_dict()
    encoder.tower.load_state_dict({name: weights[name] for name in encoder.tower.state_dict()})
