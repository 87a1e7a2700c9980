"""From conversations and images to what the model is called with.

Shapes:
    M images, S side of an image in pixels, B batch, T tokens
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from transformers import AutoImageProcessor, AutoProcessor, BatchFeature, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor

from minivlm.config import MiniVLMConfig
from minivlm.tokenizer import IMAGE

IGNORED = -100
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)
# The built-in images are mostly dark; centred on what they hold, they are learned in half the steps.
DARK_MEAN, DARK_STD = (0.2, 0.2, 0.2), (0.25, 0.25, 0.25)
NORMALISATION = {"clip": (CLIP_MEAN, CLIP_STD), "siglip": (HALF, HALF), "conv_vit": (DARK_MEAN, DARK_STD)}


class MiniVLMImageProcessor(BaseImageProcessor):
    """Images as the encoder wants them: RGB, square, rescaled once, normalised; PIL and numpy only."""

    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(
        self,
        size: int = 32,
        image_mean: Sequence[float] = HALF,
        image_std: Sequence[float] = HALF,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.size = size
        self.image_mean, self.image_std = list(image_mean), list(image_std)

    @functools.cached_property
    def _scale_and_shift(self) -> tuple[np.ndarray, np.ndarray]:
        # (x / 255 - mean) / std as one multiplication and one addition, [3, 1, 1] each.
        mean, std = (np.asarray(v, np.float32)[:, None, None] for v in (self.image_mean, self.image_std))
        return 1.0 / (255.0 * std), -mean / std

    def preprocess_array(self, image: PIL.Image.Image | np.ndarray) -> np.ndarray:
        """An image of any mode and size, or uint8 [height, width, 3] -> float32 [3, S, S]."""
        if not (
            isinstance(image, np.ndarray)
            and image.dtype == np.uint8
            and image.shape == (self.size, self.size, 3)
        ):
            image = self._square(image)
        scale, shift = self._scale_and_shift
        return image.transpose(2, 0, 1) * scale + shift

    def _square(self, image: PIL.Image.Image | np.ndarray) -> np.ndarray:
        picture = as_rgb(image)
        if picture.size != (self.size, self.size):
            picture = picture.resize((self.size, self.size), PIL.Image.Resampling.BICUBIC)
        return np.asarray(picture)

    def preprocess(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> BatchFeature:
        """One image or many -> `pixel_values` [M, 3, S, S]."""
        if isinstance(images, PIL.Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4):
            images = [images]
        pixels = np.stack([self.preprocess_array(image) for image in images])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        return self.preprocess(images, *args, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if not name.startswith("_scale")}


def as_rgb(image: PIL.Image.Image | np.ndarray) -> PIL.Image.Image:
    """Any image as RGB; what is transparent becomes white.

    Raises:
        ValueError: An array that is no picture, so not uint8 [height, width] or [height, width, 1, 3 or 4].
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise ValueError(
                f"an image array must be uint8 from 0 to 255, this one is {image.dtype}: pass it before any "
                f"rescaling, or it would be rescaled twice"
            )
        if image.ndim == 3 and image.shape[2] == 1:
            image = image[:, :, 0]
        if image.ndim != 2 and (image.ndim != 3 or image.shape[2] not in (3, 4)):
            raise ValueError(f"an image array must be [height, width, 3], this one is {list(image.shape)}")
        image = PIL.Image.fromarray(image)
    if image.mode == "F":
        raise ValueError("an image of mode F (floats) has no known range: convert it to L or RGB first")
    if image.mode.startswith("I"):
        # 16 bits per pixel, which older versions of Pillow read as I: they would cut all above 255 off.
        image = PIL.Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image)
    return image.convert("RGB")


class MiniVLMProcessor(ProcessorMixin):
    """Tokenizer, chat template and image processor in one.

    `<image>` in a text stands for one image; it is expanded to `image_tokens` copies, one for each feature.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        image_tokens: int = 16,
        **kwargs: Any,
    ) -> None:
        self.image_tokens = image_tokens
        self.image_token = IMAGE
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE)
        self._encode = functools.lru_cache(maxsize=8192)(self._encode_once)
        super().__init__(image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_encode"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._encode = functools.lru_cache(maxsize=8192)(self._encode_once)

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in super().to_dict().items() if name != "_encode"}

    def expand(self, text: str) -> str:
        """`text` with each `<image>` as often as the model has features for it."""
        return text.replace(self.image_token, self.image_token * self.image_tokens)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Texts [B] and all of their images, in the order of the placeholders, as the model's inputs.

        Raises:
            ValueError: The texts have more or fewer `<image>` placeholders than there are images.
        """
        data: dict[str, Any] = {}
        if text is not None:
            texts = [text] if isinstance(text, str) else list(text)
            options = {"add_special_tokens": False, **kwargs}
            data.update(
                self.tokenizer([self.expand(t) for t in texts], return_tensors=return_tensors, **options)
            )
        if images is not None:
            flat = flatten(images)
            if text is not None and (found := sum(t.count(self.image_token) for t in texts)) != len(flat):
                raise ValueError(
                    f"the text has {found} {self.image_token} placeholders for {len(flat)} images"
                )
            if flat:
                data.update(self.image_processor(flat, return_tensors=return_tensors))
        return BatchFeature(data)

    def encode(self, messages: Sequence[Mapping[str, Any]], image_count: int) -> tuple[list[int], list[int]]:
        """input_ids and labels of a conversation: the answers and the stop token after each are supervised.

        Args:
            messages: `{"role", "content"}`, with one `<image>` in the contents for each image.
            image_count: How many images there are.

        Raises:
            ValueError: The number of placeholders is another.
        """
        ids, labels = self._encode(json.dumps([dict(message) for message in messages]), image_count)
        return list(ids), list(labels)

    def _encode_once(self, messages: str, image_count: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        # Cached by text: rendering a template takes longer than a small model's forward pass.
        encoded = self.tokenizer.apply_chat_template(
            json.loads(messages), return_dict=True, return_assistant_tokens_mask=True
        )
        ids: list[int] = []
        labels: list[int] = []
        for token, learned in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True):
            copies = self.image_tokens if token == self.image_token_id else 1
            ids += [token] * copies
            labels += [token if learned and copies == 1 else IGNORED] * copies
        found = encoded["input_ids"].count(self.image_token_id)
        if found != image_count:
            raise ValueError(f"the text has {found} {self.image_token} placeholders for {image_count} images")
        return tuple(ids), tuple(labels)

    def ask(self, question: str, images: Sequence[Any] = ()) -> dict[str, torch.Tensor]:
        """The model's inputs for a question about some images, ready for `generate`: a batch of one."""
        messages = [{"role": "user", "content": f"{self.image_token}\n" * len(images) + question}]
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return dict(self(text=text, images=list(images) or None, return_tensors="pt"))


def flatten(images: Any) -> list[Any]:
    """One image, a list, or a list of lists, as one list."""
    if isinstance(images, list | tuple):
        return [one for image in images for one in flatten(image)]
    return [images]


def processor_for(config: MiniVLMConfig, tokenizer: Any) -> MiniVLMProcessor:
    """The processor that belongs to a model of this configuration."""
    mean, std = NORMALISATION[config.vision_kind]
    images = MiniVLMImageProcessor(size=config.image_size, image_mean=mean, image_std=std)
    return MiniVLMProcessor(images, tokenizer, image_tokens=config.image_tokens)


AutoImageProcessor.register(MiniVLMConfig, slow_image_processor_class=MiniVLMImageProcessor, exist_ok=True)
AutoProcessor.register(MiniVLMConfig, MiniVLMProcessor, exist_ok=True)
