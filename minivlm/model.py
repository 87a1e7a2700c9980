"""minivlm: an image encoder, a projector, and a decoder that reads the projected features as tokens.

    pixel_values --> vision_encoder --> vision_proj --.
                                                      v
    input_ids ----> embed_tokens --------> [text img img img text] --> layers --> norm --> lm_head

Shapes:
    B batch, T tokens, D hidden size, M images of the whole batch, I tokens of an image, C vocabulary
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from minivlm.config import MiniVLMConfig
from minivlm.language import LanguageModel, RMSNorm, RotaryEmbedding, new_cache
from minivlm.projector import Projector
from minivlm.vision import ConvViT, vision_encoder

IGNORED = -100
"""The label of a token that the loss does not see."""


class MiniVLMPreTrainedModel(PreTrainedModel):
    """What both classes share: how weights start, and what transformers may do with the model."""

    config: MiniVLMConfig
    config_class = MiniVLMConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["DecoderLayer", "VisionLayer"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Starting values that keep the activations' size, and so the first loss at ln(vocabulary).

        Called for every module whose weights a checkpoint did not bring. transformers' `init` functions
        leave alone what was loaded.
        """
        if isinstance(module, RotaryEmbedding):
            # Models are made on the meta device, which leaves garbage in buffers that no checkpoint fills.
            init.copy_(module.inv_freq, module.frequencies()[0])
        elif isinstance(module, nn.Linear):
            init.normal_(module.weight, std=0.55 / math.sqrt(module.in_features))
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            # The head is tied to it: logits this small leave the first loss at that of a blind guess.
            init.normal_(module.weight, std=0.2 / math.sqrt(module.embedding_dim))
        elif isinstance(module, ConvViT):
            # As large as the features: with the usual 0.02 the layers can't tell places apart at first,
            # and it takes twice as many steps until the model begins to look at the image.
            init.normal_(module.position_embedding, std=0.5)
        elif isinstance(module, RMSNorm | nn.LayerNorm | nn.GroupNorm):
            init.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)


class MiniVLMModel(MiniVLMPreTrainedModel):
    """The three boxes, without the head."""

    def __init__(self, config: MiniVLMConfig) -> None:
        super().__init__(config)
        self.vision_encoder = vision_encoder(config)
        self.vision_proj = Projector(config)
        self.language_model = LanguageModel(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.language_model.embed_tokens = value

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [M, 3, S, S] -> features in the decoder's space [M, I, D]."""
        return self.vision_proj(self.vision_encoder(pixel_values))

    def embed(self, input_ids: Tensor, pixel_values: Tensor | None) -> Tensor:
        """input_ids [B, T] -> [B, T, D], the placeholders replaced by the images' features, in order.

        Raises:
            ValueError: There are more or fewer placeholders than features.
        """
        embeds = self.language_model.embed_tokens(input_ids)
        placeholders = input_ids == self.config.image_token_id
        if pixel_values is None:
            # A single token is one that `generate` has just made: whatever it is, it is text.
            if input_ids.shape[1] > 1 and not torch.compiler.is_compiling():
                self._check_count(placeholders, 0, self.config.image_tokens)
            return embeds
        features = self.get_image_features(pixel_values.to(embeds.dtype))  # [M, I, D]
        if not torch.compiler.is_compiling():
            self._check_count(placeholders, *features.shape[:2])
        return embeds.masked_scatter(placeholders[..., None], features.to(embeds.dtype))

    def _check_count(self, placeholders: Tensor, images: int, per_image: int) -> None:
        found = int(placeholders.sum())
        if found != images * per_image:
            raise ValueError(
                f"{found} image tokens in the text, but {images * per_image} image features ({images} images "
                f"of {per_image}): most likely a sample was cut at the maximum length, or its text has "
                f"more or fewer <image> placeholders than it has images"
            )

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states [B, T, D]; the arguments are those of `MiniVLMForConditionalGeneration.forward`."""
        if inputs_embeds is None:
            inputs_embeds = self.embed(input_ids, pixel_values)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = new_cache(self.config)
        hidden = self.language_model(
            inputs_embeds, attention_mask, position_ids, segment_ids, past_key_values
        )
        return BaseModelOutputWithPast(last_hidden_state=hidden, past_key_values=past_key_values)


class MiniVLMForConditionalGeneration(MiniVLMPreTrainedModel, GenerationMixin):
    """The model with its head: learns from labels, and answers through `generate`."""

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}  # noqa: RUF012
    accepts_loss_kwargs = True

    def __init__(self, config: MiniVLMConfig) -> None:
        super().__init__(config)
        self.model = MiniVLMModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # A placeholder in an answer would ask for an image that isn't there.
        self.generation_config.suppress_tokens = [config.image_token_id]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head = value

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """One pass.

        Args:
            input_ids: [B, T]; an image stands for `config.image_tokens` copies of `config.image_token_id`.
            pixel_values: [M, 3, S, S], all images of the batch in the order of their placeholders.
            attention_mask: [B, T] (with a cache [B, S]), 0 at padding, which may be left or right.
            labels: [B, T], -100 where the loss does not look. Not shifted: that is done here.
            position_ids: [B, T]; by default counted from each sample's first real token.
            segment_ids: [B, T] for packed samples: tokens of one number see each other and no others.
            past_key_values: The cache of an earlier pass.
            inputs_embeds: [B, T, D] instead of `input_ids` and `pixel_values`.
            use_cache: Whether to return a cache; by default when not training.
            logits_to_keep: Only the last so many logits, or those at these indices; 0 for all.
            num_items_in_batch: What the summed loss is divided by; by default the supervised tokens here.

        Returns:
            `logits` [B, T, C] and, with labels, `loss`. While training with labels the head is applied to the
            supervised tokens only, and `logits` is None: most of a batch is image and question.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            segment_ids=segment_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
        )
        hidden = outputs.last_hidden_state
        loss = logits = None
        if labels is not None:
            loss = self.loss(hidden, labels, num_items_in_batch, segment_ids)
        if labels is None or not self.training:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)

    def loss(
        self,
        hidden: Tensor,
        labels: Tensor,
        num_items_in_batch: int | Tensor | None = None,
        segment_ids: Tensor | None = None,
    ) -> Tensor:
        """Cross entropy of each supervised token, predicted from the hidden state before it.

        With nothing supervised it is 0 and has a gradient of 0: never the NaN of 0 / 0.
        """
        targets = labels[:, 1:]
        supervised = targets != IGNORED
        if segment_ids is not None:
            # The first token of a packed sample is not foretold by the sample before it.
            supervised = supervised & (segment_ids[:, 1:] == segment_ids[:, :-1])
        if torch.compiler.is_compiling():
            # Picking tokens out would give every batch another shape, and break the graph here.
            logits = self.lm_head(hidden[:, :-1]).float().flatten(0, 1)  # [B * (T - 1), C]
            targets = targets.where(supervised, IGNORED).flatten()
        else:
            logits = self.lm_head(hidden[:, :-1][supervised]).float()  # [supervised tokens, C]
            targets = targets[supervised]
        total = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED)
        if num_items_in_batch is None:
            num_items_in_batch = supervised.sum()
        return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp(min=1)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        is_first_iteration: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Gives the images to the first pass only: afterwards their features are in the cache."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration or not kwargs.get("use_cache", True):
            inputs["pixel_values"] = pixel_values
        return inputs

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Any = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeats each sample for its beams, and its images, whose number differs, along with it."""
        pixel_values = kwargs.pop("pixel_values", None)
        if pixel_values is not None and expand_size > 1:
            found = (input_ids == self.config.image_token_id).sum(dim=1) // self.config.image_tokens
            samples = pixel_values.split(found.tolist())
            pixel_values = torch.cat([images for images in samples for _ in range(expand_size)])
        input_ids, kwargs = super()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )
        return input_ids, {**kwargs, "pixel_values": pixel_values}


AutoConfig.register("minivlm", MiniVLMConfig, exist_ok=True)
AutoModel.register(MiniVLMConfig, MiniVLMModel, exist_ok=True)
AutoModelForImageTextToText.register(MiniVLMConfig, MiniVLMForConditionalGeneration, exist_ok=True)
