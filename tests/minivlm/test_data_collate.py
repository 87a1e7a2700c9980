"""Batches: padding, what is learned, other samples' images, packing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minivlm.data import Collator, Sample, load_data, pack
from minivlm.data.collate import IGNORED, shuffled_images
from minivlm.errors import UserError

PAD, IMAGE = 0, 1
FEATURES = 3


class Letters:
    """One token per letter and three per image; only assistant letters are learned."""

    image_token_id = IMAGE
    tokenizer = SimpleNamespace(pad_token_id=PAD)

    def encode(self, messages, image_count):
        ids, labels = [], []
        for message in messages:
            for piece in message["content"].replace("<image>", "\0"):
                new = [IMAGE] * FEATURES if piece == "\0" else [ord(piece)]
                ids += new
                labels += [IGNORED if message["role"] != "assistant" or piece == "\0" else i for i in new]
        assert ids.count(IMAGE) == FEATURES * image_count
        return ids, labels

    image_processor = SimpleNamespace(
        preprocess_array=lambda image: np.full((3, 2, 2), float(np.asarray(image).flat[0]), np.float32)
    )


def sample(question="<image>q", answer="a", *values):
    images = tuple(np.full((2, 2, 3), value, np.uint8) for value in values)
    messages = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Sample(messages, images, "test")


SAMPLES = [sample("<image>q", "yes", 10), sample("qqqqqqqqq", "no"), sample("<image><image>", "b", 20, 30)]


def test_padding_on_the_right_and_on_the_left():
    right = Collator(Letters(), 100)(SAMPLES)
    left = Collator(Letters(), 100, "left")(SAMPLES)
    assert right["input_ids"].shape == (3, 11)
    for batch in (right, left):
        assert all(batch[name].dtype == torch.int64 for name in ("input_ids", "attention_mask", "labels"))
        assert (batch["input_ids"][batch["attention_mask"] == 0] == PAD).all()
        assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
        learned = ["".join(map(chr, row[row != IGNORED])) for row in batch["labels"]]
        assert learned == ["yes", "no", "b"]
        known = batch["labels"] != IGNORED
        assert (batch["labels"][known] == batch["input_ids"][known]).all()
    assert right["attention_mask"][0].tolist() == [1] * 7 + [0] * 4
    assert left["attention_mask"][0].tolist() == [0] * 4 + [1] * 7
    assert "position_ids" not in right and "segment_ids" not in right


def test_images_are_in_the_order_of_their_placeholders():
    batch = Collator(Letters(), 100)(SAMPLES)
    assert batch["pixel_values"].dtype == torch.float32
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [10, 20, 30]
    assert "pixel_values" not in Collator(Letters(), 100)([SAMPLES[1]])


def test_blank_images_are_grey_and_nothing_else_changes():
    real, blank = (Collator(Letters(), 100, images=images)(SAMPLES) for images in ("real", "blank"))
    assert set(blank["pixel_values"].flatten().tolist()) == {128.0}
    assert all(torch.equal(real[name], blank[name]) for name in real if name != "pixel_values")
    assert real["pixel_values"].shape == blank["pixel_values"].shape


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_shuffled_images_are_never_one_s_own(counts, seed):
    samples = [sample("<image>" * n, "a", *[10 * i + j for j in range(n)]) for i, n in enumerate(counts)]
    chosen = shuffled_images(samples, seed)
    assert [len(images) for images in chosen] == counts
    alone = sum(n > 0 for n in counts) == 1
    for own, images in zip(samples, chosen, strict=True):
        assert all((image is None) == alone for image in images)
        assert not any(image is mine for image in images for mine in own.images)
    if len(set(counts)) == 1 and not alone:
        used = [id(image) for images in chosen for image in images]
        assert len(set(used)) == len(used), "with as many images each, none is used twice"
    again = shuffled_images(samples, seed)
    assert [[id(i) for i in images] for images in chosen] == [[id(i) for i in images] for images in again]


def test_a_sample_that_is_too_long_is_left_out_and_counted():
    collator = Collator(Letters(), 7)
    batch = collator(SAMPLES)
    assert batch["input_ids"].shape == (2, 7)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [10, 20, 30]
    assert collator.dropped == 1
    with pytest.raises(UserError, match="max_length=3"):
        Collator(Letters(), 3)(SAMPLES)


def test_truncating_cuts_text_only():
    collator = Collator(Letters(), 10, truncate=True)
    long_answer = sample("<image>", "a" * 20, 5)
    late_image = sample("q" * 9 + "<image>", "a", 6)
    long_question = sample("q" * 20, "a")
    batch = collator([long_answer, late_image, long_question])
    assert batch["input_ids"].tolist() == [[IMAGE] * 3 + [ord("a")] * 7]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [5]
    assert collator.dropped == 2


@given(st.lists(st.integers(1, 20), max_size=30), st.integers(20, 50))
@settings(max_examples=60, deadline=None)
def test_packing_fits_everything_once(lengths, max_length):
    rows = pack(lengths, max_length)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= max_length for row in rows)
    total = sum(lengths)
    assert len(rows) <= max(1, 2 * total // max_length + 1), "first fit wastes less than half"


def test_packed_rows_hold_isolated_samples():
    samples = [*SAMPLES, sample("<image>", "c", 40)]
    batch = Collator(Letters(), 18, packing=True)(samples)
    assert batch["input_ids"].shape[0] == 2
    segments, positions = batch["segment_ids"], batch["position_ids"]
    assert torch.equal(segments > 0, batch["attention_mask"] == 1)
    learned, pixels = [], []
    for row in range(2):
        for segment in range(1, int(segments[row].max()) + 1):
            here = segments[row] == segment
            assert positions[row][here].tolist() == list(range(int(here.sum())))
            labels = batch["labels"][row][here]
            learned.append("".join(map(chr, labels[labels != IGNORED])))
            pixels.append(int((batch["input_ids"][row][here] == IMAGE).sum()) // FEATURES)
    order = [("yes", "no", "b", "c").index(text) for text in learned]
    assert sorted(order) == [0, 1, 2, 3]
    values = [[10], [], [20, 30], [40]]
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [v for i in order for v in values[i]]
    assert pixels == [len(values[i]) for i in order]


def test_packing_and_left_padding_exclude_each_other():
    with pytest.raises(UserError, match="left padding"):
        Collator(Letters(), 10, "left", packing=True)


@pytest.mark.parametrize("name", ["digits", "emoji"])
def test_with_the_real_processor(name):
    from minivlm import build

    model, processor = build("tiny")
    dataset = load_data(name)
    samples = [dataset[i] for i in range(6)]
    batch = Collator(processor, 128)(samples)
    assert batch["pixel_values"].shape == (6, 3, 32, 32)
    for row, one in zip(batch["labels"], samples, strict=True):
        said = processor.tokenizer.decode(row[row != IGNORED])
        assert said == one.messages[1]["content"] + processor.tokenizer.eos_token
    padded = Collator(processor, 128)(samples)
    packed = Collator(processor, 128, packing=True)(samples)
    assert len(packed["input_ids"]) < 6
    model.eval()
    with torch.no_grad():
        losses = [float(model(**b).loss) for b in (padded, packed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4), "packed samples don't see each other"
