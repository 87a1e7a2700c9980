"""From the vision encoder's space into the decoder's.

Shapes:
    M images, P features of an image, V vision width, D decoder width, r pixel-shuffle factor
"""

from __future__ import annotations

from torch import Tensor, nn

from minivlm.config import MiniVLMConfig


class Projector(nn.Module):
    """`linear`, `mlp` (linear, GELU, linear) or `layernorm_mlp` (the same behind a LayerNorm)."""

    def __init__(self, config: MiniVLMConfig) -> None:
        super().__init__()
        self.shuffle = config.pixel_shuffle
        width = config.vision_hidden_size * self.shuffle**2
        hidden = config.projector_hidden_size or config.hidden_size
        if config.projector == "linear":
            self.layers = nn.Sequential(nn.Linear(width, config.hidden_size))
        else:
            layers = [nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, config.hidden_size)]
            if config.projector == "layernorm_mlp":
                layers.insert(0, nn.LayerNorm(width))
            self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """features [M, P, V] -> [M, P / r^2, D]."""
        if self.shuffle > 1:
            features = pixel_shuffle(features, self.shuffle)
        return self.layers(features)


def pixel_shuffle(features: Tensor, factor: int) -> Tensor:
    """Folds each `factor` x `factor` square of features into one: [M, P, V] -> [M, P / r^2, V * r^2]."""
    M, P, V = features.shape
    side = round(P**0.5)
    x = features.view(M, side // factor, factor, side // factor, factor, V)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(M, (side // factor) ** 2, factor * factor * V)
