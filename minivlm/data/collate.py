"""From samples to the batch that the model is called with.

Shapes:
    B samples (or packed rows), T tokens, N images of the whole batch, in order of their placeholders:
    input_ids, attention_mask, labels [B, T] int64;  pixel_values [N, 3, H, W] float32, absent without images;
    packed only: position_ids, segment_ids [B, T] int64 (segment 0 is padding, 1.. are the samples)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import torch

from minivlm.data.sample import Draws, Message, Sample
from minivlm.errors import UserError

if TYPE_CHECKING:
    from minivlm.data.sample import Image

IGNORED = -100
"""The label of a token that is not learned."""

Encoded = tuple[list[int], list[int]]
"""Token ids and labels of one sample."""


class Processor(Protocol):
    """What the collator wants of a processor."""

    tokenizer: Any
    image_processor: Any
    image_token_id: int

    def encode(self, messages: Sequence[Message], image_count: int) -> Encoded: ...


class Collator:
    """Called with a list of samples, it returns their batch.

    A sample that is too long is left out of the batch and counted in `dropped`, since to cut it could cut an
    image in two, which no model can take.

    Args:
        processor: Encodes texts and images.
        max_length: The most tokens in a row, image tokens included.
        padding_side: "right", or "left" as for generating.
        images: "real"; "shuffled": every sample sees the images of another one of the batch; "blank": grey.
            What a model still answers with the latter two, it answers without looking.
        seed: What the shuffling depends on.
        truncate: Cut off what goes beyond `max_length`, if that is text only and something is left to learn.
        packing: Put several samples into one row, isolated from each other.
    """

    def __init__(
        self,
        processor: Processor,
        max_length: int,
        padding_side: Literal["right", "left"] = "right",
        images: Literal["real", "shuffled", "blank"] = "real",
        *,
        seed: int = 0,
        truncate: bool = False,
        packing: bool = False,
    ) -> None:
        if packing and padding_side == "left":
            raise UserError("packed rows are padded on the right: choose packing or left padding")
        self.processor = processor
        self.max_length = max_length
        self.padding_side = padding_side
        self.images = images
        self.seed = seed
        self.truncate = truncate
        self.packing = packing
        self.dropped = 0
        self._pad_id = int(processor.tokenizer.pad_token_id)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        samples, encoded = self._encode(samples)
        images = self._choose_images(samples)
        if self.packing:
            rows = pack([len(ids) for ids, _ in encoded], self.max_length)
            batch = self._packed(encoded, rows)
            images = [images[i] for row in rows for i in row]
        else:
            batch = self._padded(encoded)
        pixels = [self._pixels(image) for of_sample in images for image in of_sample]
        if pixels:
            batch["pixel_values"] = torch.from_numpy(np.stack(pixels))
        return batch

    def _encode(self, samples: Sequence[Sample]) -> tuple[list[Sample], list[Encoded]]:
        """The samples that fit, and their tokens."""
        kept, encoded = [], []
        for sample in samples:
            ids, labels = self.processor.encode(sample.messages, len(sample.images))
            if len(ids) > self.max_length and self.truncate:
                ids, labels = self._cut(ids, labels)
            if len(ids) > self.max_length:
                self.dropped += 1
                continue
            kept.append(sample)
            encoded.append((ids, labels))
        if not kept:
            raise UserError(
                f"each of the {len(samples)} samples of a batch has more than max_length={self.max_length} "
                "tokens (image tokens included): raise max_length"
            )
        return kept, encoded

    def _cut(self, ids: list[int], labels: list[int]) -> Encoded:
        """The first `max_length` tokens; everything, if that would cut images or leave nothing to learn."""
        limit = self.max_length
        if self.processor.image_token_id in ids[limit:] or all(label == IGNORED for label in labels[:limit]):
            return ids, labels
        return ids[:limit], labels[:limit]

    def _padded(self, encoded: list[Encoded]) -> dict[str, torch.Tensor]:
        shape = (len(encoded), max(len(ids) for ids, _ in encoded))
        input_ids = np.full(shape, self._pad_id, np.int64)
        labels = np.full(shape, IGNORED, np.int64)
        mask = np.zeros(shape, np.int64)
        for row, (ids, targets) in enumerate(encoded):
            place = slice(0, len(ids)) if self.padding_side == "right" else slice(shape[1] - len(ids), None)
            input_ids[row, place] = ids
            labels[row, place] = targets
            mask[row, place] = 1
        arrays = {"input_ids": input_ids, "attention_mask": mask, "labels": labels}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _packed(self, encoded: list[Encoded], rows: list[list[int]]) -> dict[str, torch.Tensor]:
        shape = (len(rows), max(sum(len(encoded[i][0]) for i in row) for row in rows))
        input_ids = np.full(shape, self._pad_id, np.int64)
        labels = np.full(shape, IGNORED, np.int64)
        positions = np.zeros(shape, np.int64)
        segments = np.zeros(shape, np.int64)
        for r, row in enumerate(rows):
            start = 0
            for segment, i in enumerate(row, start=1):
                ids, targets = encoded[i]
                place = slice(start, start + len(ids))
                input_ids[r, place] = ids
                labels[r, place] = targets
                # What a model predicts from a sample's last token is the next sample: never learn that.
                labels[r, start] = IGNORED
                positions[r, place] = np.arange(len(ids))
                segments[r, place] = segment
                start += len(ids)
        arrays = {
            "input_ids": input_ids,
            "attention_mask": (segments > 0).astype(np.int64),
            "labels": labels,
            "position_ids": positions,
            "segment_ids": segments,
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _choose_images(self, samples: list[Sample]) -> list[tuple[Image | None, ...]]:
        """The images of each sample; None stands for a blank one."""
        if self.images == "real":
            return [sample.images for sample in samples]
        blank = [(None,) * len(sample.images) for sample in samples]
        if self.images == "blank":
            return list(blank)
        return shuffled_images(samples, self.seed)

    def _pixels(self, image: Image | None) -> np.ndarray:
        if image is None:
            # Any size will do: the image processor brings it to the model's.
            image = np.full((8, 8, 3), 128, np.uint8)
        return np.asarray(self.processor.image_processor.preprocess_array(image), np.float32)


def shuffled_images(samples: Sequence[Sample], seed: int) -> list[tuple[Image | None, ...]]:
    """For each sample as many images as it has, but of other samples; None where there are no others.

    The samples are moved on by one and the same number of places, so that none keeps its own images. Where
    numbers of images differ, those of the next samples are taken in turn until there are enough.
    """
    with_images = [i for i, sample in enumerate(samples) if sample.images]
    chosen: list[tuple[Image | None, ...]] = [() for _ in samples]
    others = len(with_images) - 1
    shift = 1 + Draws("shuffled images", seed, others).below(others) if others > 0 else 0
    for place, i in enumerate(with_images):
        wanted = len(samples[i].images)
        if not others:
            chosen[i] = (None,) * wanted
            continue
        found: list[Image] = []
        for step in range(wanted * (others + 1)):
            donor = with_images[(place + shift + step) % len(with_images)]
            if donor != i:
                found += samples[donor].images
            if len(found) >= wanted:
                break
        chosen[i] = tuple(found[:wanted])
    return chosen


def pack(lengths: Sequence[int], max_length: int) -> list[list[int]]:
    """Which samples share a row of at most `max_length` tokens: first fit, longest first; deterministic."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((r for r, free in enumerate(room) if free >= lengths[i]), None)
        if place is None:
            place = len(rows)
            rows.append([])
            room.append(max_length)
        rows[place].append(i)
        room[place] -= lengths[i]
    return [sorted(row) for row in rows]
