"""Which samples come when: a function of (seed, step) alone."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivlm.data import IndexStream, order
from minivlm.data.digits import Digits
from minivlm.data.stream import BLOCKS_TOGETHER


@given(size=st.integers(1, 200), seed=st.integers(0, 2**40), epoch=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_an_epoch_has_every_sample_once(size, seed, epoch):
    assert sorted(order(seed, epoch, size)) == list(range(size))
    assert np.array_equal(order(seed, epoch, size), order(seed, epoch, size))


def test_epochs_and_seeds_are_shuffled_differently():
    assert not np.array_equal(order(0, 0, 100), order(0, 1, 100))
    assert not np.array_equal(order(0, 0, 100), order(1, 0, 100))
    assert not np.array_equal(order(0, 0, 100), np.arange(100))


@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_blocks_are_visited_a_handful_at_a_time(blocks, epoch):
    size = sum(blocks)
    shuffled = order(0, epoch, size, tuple(blocks))
    assert sorted(shuffled) == list(range(size))
    block_of = np.repeat(np.arange(len(blocks)), blocks)
    seen = block_of[shuffled]
    first = {block: int(np.argmax(seen == block)) for block in range(len(blocks))}
    last = {block: size - 1 - int(np.argmax(seen[::-1] == block)) for block in range(len(blocks))}
    for place in range(size):
        together = [b for b in first if first[b] <= place <= last[b]]
        assert len(together) <= BLOCKS_TOGETHER


@given(
    size=st.integers(1, 60),
    batch_size=st.integers(1, 17),
    world_size=st.integers(1, 4),
    start=st.integers(0, 12),
)
@settings(max_examples=60, deadline=None)
def test_ranks_share_each_epoch_and_resuming_needs_only_the_step(size, batch_size, world_size, start):
    steps = start + 6
    taken = []
    streams = [iter(IndexStream(size, 5, batch_size, rank, world_size)) for rank in range(world_size)]
    for _ in range(steps):
        for stream in streams:
            taken += next(stream)
    whole = [int(i) for epoch in range(len(taken) // size + 1) for i in order(5, epoch, size)]
    assert taken == whole[: len(taken)]
    for rank in range(world_size):
        resumed = IndexStream(size, 5, batch_size, rank, world_size, start_step=start)
        straight = IndexStream(size, 5, batch_size, rank, world_size)
        assert list(islice(resumed, 6)) == list(islice(straight, start, steps))
        assert all(len(batch) == batch_size for batch in islice(resumed, 6))


def test_a_never_ending_dataset_never_repeats():
    streams = [IndexStream.over(Digits(), 0, 4, rank, 2) for rank in range(2)]
    seen = [i for step in range(50) for stream in streams for i in stream.batch(step)]
    assert seen == list(range(400))


@pytest.mark.parametrize("arguments", [(0, 0, 4), (5, 0, 0), (5, 0, 1, 2, 2), (5, 0, 1, -1, 1)])
def test_impossible_batches_are_refused(arguments):
    with pytest.raises(ValueError):
        IndexStream(*arguments)


def test_it_serves_as_a_batch_sampler():
    from torch.utils.data import DataLoader

    loader = DataLoader(
        Digits(), batch_sampler=IndexStream.over(Digits(), 0, 3, start_step=2), collate_fn=list
    )
    batch = next(iter(loader))
    assert [s.messages for s in batch] == [Digits()[i].messages for i in (6, 7, 8)]
