"""Datasets, collators and batches that move when they are read."""

from __future__ import annotations

import collections
import dataclasses
import random
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from benchmarks.hostile.families_state.tiny import VOCABULARY, Tiny, batch, family, loss_of, subject
from vlmdoctor.subject import Subject


def _sample(number: int) -> dict[str, list[int]]:
    ids = [(number + k) % VOCABULARY for k in range(6)]
    return {"input_ids": ids, "labels": ids}


def _collate(samples: list[Any]) -> dict[str, Tensor]:
    return {name: torch.tensor([sample[name] for sample in samples]) for name in ("input_ids", "labels")}


def _with_data(dataset: Any, collator: Any = _collate, **more: Any) -> Subject:
    return subject(Tiny(), train_dataset=dataset, data_collator=collator, **more)


class Stream(IterableDataset):
    """Reads on from where it is."""

    def __init__(self, source: Any) -> None:
        self.source, self.position = source, 0

    def __iter__(self) -> Iterator[Any]:
        for one in self.source:
            self.position += 1
            yield _sample(int(one))


@family
def stream_with_position() -> Subject:
    class Positioned(IterableDataset):
        def __init__(self) -> None:
            self.position, self.noise = 0, random.Random(1)

        def __iter__(self) -> Iterator[Any]:
            while True:
                self.position += 1
                yield _sample(self.noise.randrange(VOCABULARY))

    return _with_data(Positioned())


@family
def stream_over_iterator() -> Subject:
    return _with_data(Stream(iter(list(range(1000)))))


@family
def stream_over_generator() -> Subject:
    return _with_data(Stream(n for n in range(1000)))


@family
def stream_over_binary_file() -> Subject:
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the dataset's)
    file.write(b"\n".join(b"%d" % n for n in range(5000)))
    file.seek(0)
    return _with_data(Stream(file))


@family
def stream_over_text_file() -> Subject:
    file = tempfile.TemporaryFile("w+")  # noqa: SIM115 (the dataset's)
    file.write("\n".join(str(n) for n in range(5000)))
    file.seek(0)
    return _with_data(Stream(file))


@family
def dataset_with_cache() -> Subject:
    class Cached(Dataset):
        def __init__(self) -> None:
            self.cache, self.reads = {}, collections.Counter()

        def __len__(self) -> int:
            return 100

        def __getitem__(self, number: int) -> Any:
            self.reads[number] += 1
            return self.cache.setdefault(number, _sample(number))

    return _with_data(Cached())


@family
def dataset_with_generators() -> Subject:
    class Augmented(Dataset):
        def __init__(self) -> None:
            self.numpy, self.torch = np.random.default_rng(1), torch.Generator().manual_seed(1)

        def __len__(self) -> int:
            return 100

        def __getitem__(self, number: int) -> Any:
            torch.rand(1, generator=self.torch)
            return _sample(int(self.numpy.integers(100)))

    return _with_data(Augmented())


@family
def dataset_of_arrays_edited() -> Subject:
    class Edited(Dataset):
        def __init__(self) -> None:
            self.rows = np.arange(60).reshape(10, 6) % VOCABULARY

        def __len__(self) -> int:
            return 10

        def __getitem__(self, number: int) -> Any:
            self.rows[number, 0] += 1
            return {"input_ids": list(self.rows[number] % VOCABULARY), "labels": list(range(6))}

    return _with_data(Edited())


@family
def loader_with_workers_kept() -> Subject:
    loader = DataLoader([_sample(n) for n in range(8)], num_workers=1, persistent_workers=True)
    return _with_data(loader, None)


@family
def collator_with_generator() -> Subject:
    class Masking:
        def __init__(self) -> None:
            self.noise, self.calls, self.recent = (
                torch.Generator().manual_seed(1),
                0,
                collections.deque([0], 4),
            )

        def __call__(self, samples: list[Any]) -> Any:
            self.calls += 1
            self.recent.append(self.calls)
            made = _collate(samples)
            made["labels"][torch.rand(made["labels"].shape, generator=self.noise) < 0.1] = -100
            return made

    return _with_data([_sample(n) for n in range(20)], Masking())


@family
def collator_closure() -> Subject:
    lengths: list[int] = []

    def collate(samples: list[Any]) -> Any:
        lengths.append(len(samples))
        return _collate(samples)

    return _with_data([_sample(n) for n in range(20)], collate)


@family
def batch_dataclass() -> Subject:
    @dataclasses.dataclass
    class Batch:
        ids: Tensor
        labels: Tensor
        uses: int = 0

    def loss_fn(model: nn.Module, given: Batch) -> Tensor:
        given.uses += 1
        given.ids.remainder_(VOCABULARY - 1)
        given.labels = given.labels.clone()
        return model(given.ids, given.labels)["loss"]

    made = batch()
    return subject(Tiny(), batch=Batch(made["input_ids"], made["labels"]), loss_fn=loss_fn)


@family
def batch_frozen_slots() -> Subject:
    @dataclasses.dataclass(frozen=True, slots=True)
    class Batch:
        ids: Tensor
        labels: Tensor
        log: list[int]

    def loss_fn(model: nn.Module, given: Batch) -> Tensor:
        given.log.append(1)
        given.labels[0, 0] = -100
        return model(given.ids, given.labels)["loss"]

    made = batch()
    return subject(Tiny(), batch=Batch(made["input_ids"], made["labels"], []), loss_fn=loss_fn)


@family
def batch_with_arrays() -> Subject:
    def loss_fn(model: nn.Module, given: Any) -> Tensor:
        given["weights"] *= 0.9
        given["more"].seen.append(1)
        return loss_of(model, {"input_ids": given["input_ids"], "labels": given["labels"]})

    more = SimpleNamespace(seen=[])
    return subject(Tiny(), batch={**batch(), "weights": np.ones(3), "more": more}, loss_fn=loss_fn)


@family
def batch_taken_apart() -> Subject:
    def loss_fn(model: nn.Module, given: Any) -> Tensor:
        labels = given["nested"][0].pop("labels")
        given["nested"].append(1)
        return model(given["input_ids"], labels)["loss"]

    made = batch()
    given = {"input_ids": made["input_ids"], "nested": [{"labels": made["labels"]}]}
    return subject(Tiny(), batch=given, loss_fn=loss_fn)
