"""The two things that can be trained: answers (stages align and sft), and the encoder by itself (stage clip).

A task brings the module that learns, the batches that it learns from, and the evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from minivlm.contrastive import ContrastiveModel, PairCollator, Pairs, evaluate_pairs
from minivlm.data import Collator, IndexStream, load_data
from minivlm.distributed import World
from minivlm.errors import UserError
from minivlm.evaluate import evaluate_answers, undisturbed
from minivlm.model import MiniVLMForConditionalGeneration
from minivlm.progress import Progress, nothing
from minivlm.train_config import TrainConfig

Batch = dict[str, Tensor]


class Task(Protocol):
    """What the training loop wants of a stage.

    Attributes:
        model: Called as `model(**batch, num_items_in_batch=n).loss`.
        dataset: What is trained on, by index.
        collate: From its items to a batch.
        choices: How many answers a prediction chooses among.
    """

    model: nn.Module
    dataset: Any
    collate: Callable[[list[Any]], Batch]
    choices: int

    def targets(self, batch: Batch) -> int:
        """How many predictions the loss is a mean of."""
        ...

    def tokens(self, batch: Batch) -> int:
        """How many tokens (stage clip: images and texts) there are, padding not counted."""
        ...

    def evaluate(
        self, autocast: Callable[[], AbstractContextManager], progress: Progress = nothing
    ) -> dict[str, Any]:
        """The record of `evaluate_answers`; disturbs nothing."""
        ...


class Answers:
    """Question in, answer out."""

    def __init__(self, vlm: MiniVLMForConditionalGeneration, processor: Any, config: TrainConfig) -> None:
        self.model: nn.Module = vlm
        self.choices = vlm.config.vocab_size
        self.dataset = load_data(
            config.data, "train", config.seed, on_bad_row=config.on_bad_row, hold_out=config.test_data is None
        )
        self.collate: Callable[[list[Any]], Batch] = Collator(
            processor, config.max_length, config.padding_side, config.images, packing=config.packing
        )
        if hasattr(self.dataset, "limit_length"):
            self.dataset.limit_length(processor, config.max_length)
        self._processor, self._config = processor, config
        self._samples: list[Any] = []
        self._headline_kinds: tuple[str, ...] = ()
        if config.eval_samples:
            test = load_test_data(
                config.test_data or config.data, config.test_data is not None, config.on_bad_row
            )
            self._headline_kinds = test.headline_kinds
            self._samples = fitting(test.evaluation_set(config.eval_samples), processor, config.max_length)

    def targets(self, batch: Batch) -> int:
        return int((batch["labels"][:, 1:] != -100).sum())

    def tokens(self, batch: Batch) -> int:
        return int(batch["attention_mask"].sum())

    def evaluate(
        self, autocast: Callable[[], AbstractContextManager], progress: Progress = nothing
    ) -> dict[str, Any]:
        def collator(images: str) -> Collator:
            return Collator(self._processor, self._config.max_length, images=images)

        with undisturbed(self.model), autocast():
            return evaluate_answers(
                self.model, self._samples, collator, self._headline_kinds, progress=progress
            )


class Contrastive:
    """Picture and text, side by side."""

    def __init__(self, vlm: MiniVLMForConditionalGeneration, processor: Any, config: TrainConfig) -> None:
        self._pair_model = ContrastiveModel(
            vlm.model.vision_encoder, vlm.config.vision_hidden_size, len(processor.tokenizer)
        )
        self.model: nn.Module = self._pair_model
        self.choices = config.batch_size
        self.dataset = Pairs(load_data(config.data, "train", config.seed, on_bad_row=config.on_bad_row))
        self.collate: Callable[[list[Any]], Batch] = PairCollator(processor, config.images)
        self._processor = processor
        self._pairs: list[Any] = []
        if config.eval_samples:
            test = load_test_data(
                config.test_data or config.data, config.test_data is not None, config.on_bad_row
            )
            self._pairs = [test.contrastive_pair(i) for i in range(min(config.eval_samples, len(test)))]

    def targets(self, batch: Batch) -> int:
        return len(batch["labels"])

    def tokens(self, batch: Batch) -> int:
        return 2 * len(batch["labels"])

    def evaluate(
        self, autocast: Callable[[], AbstractContextManager], progress: Progress = nothing
    ) -> dict[str, Any]:
        with undisturbed(self.model), autocast():
            return evaluate_pairs(self._pair_model, self._processor, self._pairs, progress=progress)


def load_test_data(spec: str, is_all_test: bool, on_bad_row: str) -> Any:
    """The unseen part of some data; `is_all_test` if nothing of it was trained on."""
    return load_data(spec, "test", on_bad_row=on_bad_row, hold_out=not is_all_test)


def fitting(samples: list[Any], processor: Any, max_length: int) -> list[Any]:
    """The samples of at most `max_length` tokens.

    Raises:
        UserError: None is that short.
    """
    fits = [s for s in samples if len(processor.encode(s.messages, len(s.images))[0]) <= max_length]
    if samples and not fits:
        raise UserError(f"every test sample has more than --max-length {max_length} tokens; raise it.")
    return fits


def batches(task: Task, config: TrainConfig, world: World, first_step: int) -> Iterator[Batch]:
    """This process's micro-batches from optimizer step `first_step` on, without end.

    Which samples they hold is a pure function of the seed and the step: a resume needs no catching up.
    """
    stream = IndexStream.over(
        task.dataset, config.seed, config.batch_size, world.rank, world.size, first_step * config.accumulate
    )
    loader = DataLoader(
        task.dataset,
        batch_sampler=stream,
        collate_fn=task.collate,
        num_workers=config.workers,
        pin_memory=world.device.type == "cuda",
        # A generator of its own: otherwise starting the loader would draw from the run's random numbers.
        generator=torch.Generator().manual_seed(config.seed),
    )
    return iter(loader)
