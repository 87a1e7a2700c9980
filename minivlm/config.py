"""The configuration of minivlm: every number that shapes the model."""

from __future__ import annotations

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

VISION_KINDS = ("conv_vit", "clip", "siglip")
PROJECTORS = ("linear", "mlp", "layernorm_mlp")
ROPE_TYPES = ("default", "linear", "ntk", "dynamic", "yarn", "llama3", "longrope")


@strict
class MiniVLMConfig(PreTrainedConfig):
    """Sizes of the three boxes (vision encoder, projector, decoder) and the ids that tie them together.

    Decoder: `head_dim` is hidden_size / heads unless given; `rope_parameters` is transformers' mapping
    (`rope_theta`, `rope_type`, `factor`, …).
    Vision: `vision_kind` is `conv_vit` (the small encoder of our own), `clip` or `siglip`; `vision_layer`
    picks the layer whose output is used (-1: the last; SigLIP's is normalised once more); `vision_hidden_act`
    and `vision_layer_norm_eps` are CLIP's or SigLIP's own unless given.
    Projector: `linear`, `mlp` or `layernorm_mlp`; `pixel_shuffle` n folds n x n features into one.
    """

    model_type = "minivlm"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012

    vocab_size: int = 680
    hidden_size: int = 64
    intermediate_size: int = 192
    num_hidden_layers: int = 3
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 512
    rope_parameters: dict | None = None
    rms_norm_eps: float = 1e-5
    qk_norm: bool = False
    attention_dropout: float = 0.0
    tie_word_embeddings: bool = True
    use_cache: bool = True

    vision_kind: str = "conv_vit"
    image_size: int = 32
    patch_size: int = 8
    vision_hidden_size: int = 64
    vision_intermediate_size: int = 128
    vision_num_hidden_layers: int = 2
    vision_num_attention_heads: int = 4
    vision_layer: int = -1
    vision_hidden_act: str | None = None
    vision_layer_norm_eps: float | None = None

    projector: str = "mlp"
    projector_hidden_size: int | None = None
    pixel_shuffle: int = 1

    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] | None = 2
    image_token_id: int = 3

    def __post_init__(self, **kwargs: Any) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and self.num_attention_heads > 0:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(
                    f"hidden_size {self.hidden_size} can't be divided among {self.num_attention_heads} "
                    f"heads; change one of them or give head_dim"
                )
            self.head_dim = self.hidden_size // self.num_attention_heads
        super().__post_init__(**kwargs)

    @property
    def image_tokens(self) -> int:
        """How many placeholders one image takes among the input ids."""
        return (self.image_size // self.patch_size // self.pixel_shuffle) ** 2

    @property
    def vision_layers_used(self) -> int:
        """How many layers of the vision encoder come before the features that `vision_layer` picks."""
        return self.vision_layer + (self.vision_num_hidden_layers + 1 if self.vision_layer < 0 else 0)

    def _validate_ntk_rope_parameters(self, rope_parameters: dict, ignore_keys: set | None = None) -> None:
        # transformers looks for this method by the name of the type; `ntk` is ours.
        if not isinstance(factor := rope_parameters.get("factor"), int | float) or factor < 1:
            raise ValueError(f"rope_parameters needs a factor of at least 1 for 'ntk', not {factor}")

    def validate_architecture(self) -> None:
        """Refuses sizes that don't fit together, in words that name them; called by `@strict`."""
        for name, value in vars(self).items():
            size = name.endswith(("_size", "_heads", "_layers")) or name in ("head_dim", "pixel_shuffle")
            if size and isinstance(value, int) and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} query heads can't share {self.num_key_value_heads} key/value "
                f"heads evenly; num_key_value_heads must divide num_attention_heads"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary positions turn pairs, so it must be even")
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(
                f"attention_dropout is {self.attention_dropout}; it is a share from 0 to below 1"
            )
        rope_type = self.rope_parameters["rope_type"]
        if rope_type not in ROPE_TYPES:
            raise ValueError(f"the rope_type is '{rope_type}'; it must be one of {', '.join(ROPE_TYPES)}")
        if self.vision_kind == "conv_vit" and self.vision_layer != -1:
            raise ValueError(f"vision_layer is {self.vision_layer}; conv_vit offers its last layer alone, -1")
        if not 1 <= self.vision_layers_used <= self.vision_num_hidden_layers:
            raise ValueError(
                f"vision_layer is {self.vision_layer}, but the vision encoder has "
                f"{self.vision_num_hidden_layers} layers"
            )
        if self.vision_kind not in VISION_KINDS:
            raise ValueError(
                f"vision_kind is '{self.vision_kind}'; it must be one of {', '.join(VISION_KINDS)}"
            )
        if self.projector not in PROJECTORS:
            raise ValueError(f"projector is '{self.projector}'; it must be one of {', '.join(PROJECTORS)}")
        if self.vision_hidden_size % self.vision_num_attention_heads:
            raise ValueError(
                f"vision_hidden_size {self.vision_hidden_size} can't be divided among "
                f"{self.vision_num_attention_heads} vision heads"
            )
        if self.image_size % (self.patch_size * self.pixel_shuffle):
            raise ValueError(
                f"image_size {self.image_size} is no multiple of patch_size {self.patch_size} times "
                f"pixel_shuffle {self.pixel_shuffle}"
            )
        layers = self.vision_num_hidden_layers
        if self.vision_kind == "conv_vit" and self.vision_layer != -1:
            raise ValueError(f"vision_layer is {self.vision_layer}; conv_vit gives its last layer only (-1)")
        if not -layers - 1 <= self.vision_layer <= layers:
            raise ValueError(f"vision_layer is {self.vision_layer}, but the encoder has {layers} layers")
        if self.vision_kind == "conv_vit" and self.patch_size & (self.patch_size - 1):
            raise ValueError(f"patch_size is {self.patch_size}; conv_vit halves the image, so it must be 2^n")
        special = {"image_token_id": self.image_token_id, "pad_token_id": self.pad_token_id}
        for name, token in special.items():
            if token is not None and not 0 <= token < self.vocab_size:
                raise ValueError(f"{name} is {token}, outside the vocabulary of {self.vocab_size}")
