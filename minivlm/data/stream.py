"""In which order samples are read: a pure function of (seed, step), so that resuming needs no other state.

position p = 0, 1, 2, ... of the endless stream -> sample order(seed, p // size, size)[p % size]
batch k of rank r of W: the positions from (k * W + r) * batch_size on
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from minivlm.data.sample import Dataset

BLOCKS_TOGETHER = 4
"""How many blocks (row groups of a parquet file) are mixed with each other; so many are held in memory."""


@lru_cache(maxsize=4)
def order(seed: int, epoch: int, size: int, blocks: tuple[int, ...] = ()) -> np.ndarray:
    """The samples 0..size-1 shuffled for one epoch: int64 [size], read-only.

    With `blocks` (lengths that add up to `size`), samples that can only be read a whole block at a time stay
    near each other: the blocks are shuffled, and then the samples within each handful of blocks.
    """
    key = hashlib.blake2b(f"order {seed} {epoch}".encode(), digest_size=16).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    if len(blocks) <= 1:
        shuffled = generator.permutation(size)
    else:
        starts = np.cumsum((0, *blocks[:-1]))
        turns = generator.permutation(len(blocks))
        handfuls = [turns[i : i + BLOCKS_TOGETHER] for i in range(0, len(turns), BLOCKS_TOGETHER)]
        parts = []
        for handful in handfuls:
            together = np.concatenate([starts[b] + np.arange(blocks[b]) for b in handful])
            parts.append(generator.permutation(together))
        shuffled = np.concatenate(parts)
    shuffled.setflags(write=False)
    return shuffled


class IndexStream:
    """Batches of sample indices without end; works as a DataLoader's `batch_sampler`.

    Every epoch visits every sample once, over all ranks together. A batch may span two epochs, so that all
    batches are full, whatever the size.

    Args:
        size: Number of samples; None for a never-ending dataset, where no index is ever given out twice.
        seed: What the shuffling depends on.
        batch_size: Samples per batch and rank.
        rank: This process, of `world_size` that each get their own batches.
        world_size: The number of processes.
        start_step: The batch to begin with: the number of batches that were already taken.
        blocks: See `order`.
    """

    def __init__(
        self,
        size: int | None,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
        blocks: Sequence[int] = (),
    ) -> None:
        if size is not None and size < 1:
            raise ValueError("there are no samples to take batches of")
        if batch_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"impossible batches: size {batch_size}, rank {rank} of {world_size}")
        self.size = size
        self.seed = seed
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.start_step = start_step
        self.blocks = tuple(int(block) for block in blocks)

    @classmethod
    def over(
        cls,
        dataset: Dataset,
        seed: int,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        start_step: int = 0,
    ) -> IndexStream:
        """The stream that suits the dataset: never-ending if it is, mindful of its blocks if it has any."""
        size = None if dataset.endless else len(dataset)
        return cls(size, seed, batch_size, rank, world_size, start_step, dataset.blocks)

    def batch(self, step: int) -> list[int]:
        """The sample indices of batch `step`."""
        first = (step * self.world_size + self.rank) * self.batch_size
        if self.size is None:
            return list(range(first, first + self.batch_size))
        indices: list[int] = []
        while len(indices) < self.batch_size:
            epoch, place = divmod(first + len(indices), self.size)
            missing = self.batch_size - len(indices)
            indices += order(self.seed, epoch, self.size, self.blocks)[place : place + missing].tolist()
        return indices

    def __iter__(self) -> Iterator[list[int]]:
        step = self.start_step
        while True:
            yield self.batch(step)
            step += 1
