"""The built-in handwriting: what is asked, that answers are true, that no test scan is trained on."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from minivlm.data import digits
from minivlm.data.digits import COLOURS, SCANS_PER_DIGIT, Digits


def same(a, b) -> bool:
    return a.messages == b.messages and a.kind == b.kind and np.array_equal(a.images[0], b.images[0])


def test_the_asset_holds_all_scans_in_order_of_their_digit():
    scans = digits.read_scans()
    assert scans.shape == (1797, 8, 8) and scans.dtype == np.uint8
    assert sum(SCANS_PER_DIGIT) == 1797
    assert set(np.unique(scans)) == set(range(0, 241, 15))


def test_the_asset_is_what_scikit_learn_ships():
    sklearn = pytest.importorskip("sklearn.datasets")
    pixels, labels = sklearn.load_digits(return_X_y=True)
    expected = pixels[np.argsort(labels, kind="stable")].reshape(-1, 8, 8)
    assert np.array_equal(digits.read_scans() / 15, expected)


def test_the_split_is_by_scan_and_stratified():
    train, test = digits.split_scans("train"), digits.split_scans("test")
    assert sum(map(len, train)) + sum(map(len, test)) == 1797
    assert not set(np.concatenate(train)) & set(np.concatenate(test))
    for digit, count in enumerate(SCANS_PER_DIGIT):
        assert len(test[digit]) == round(count / 5)
    assert sum(map(len, test)) == 359


def test_no_picture_of_a_test_scan_is_among_the_training_scans():
    scans = digits.read_scans()
    train = {scans[i].tobytes() for indices in digits.split_scans("train") for i in indices}
    assert not any(scans[i].tobytes() in train for indices in digits.split_scans("test") for i in indices)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_sample_depends_on_its_key_alone(split):
    first, again = Digits(split, seed=3), Digits(split, seed=3)
    later = again[500]
    assert same(first[7], again[7])
    assert same(first[500], later)
    assert not same(first[7], Digits(split, seed=4)[7])
    assert not same(first[7], first[8])
    assert not same(Digits("train")[7], Digits("test")[7])
    assert same(Digits(split, seed=np.int64(3))[np.int64(7)], first[7]), "whatever kind of integer"


def test_samples_are_the_same_in_another_process():
    program = (
        "from minivlm.data.digits import Digits; s = Digits('train', 1)[12345]; "
        "print(s.messages[0]['content'][8:], s.messages[1]['content'], s.images[0].astype(int).sum())"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    sample = Digits("train", 1)[12345]
    texts = sample.messages[0]["content"][8:], sample.messages[1]["content"]
    assert out.split("\n")[0] == f"{texts[0]} {texts[1]} {sample.images[0].astype(int).sum()}"


def test_a_sample_is_one_image_one_question_one_answer():
    for i in range(200):
        sample = Digits()[i]
        user, assistant = sample.messages
        assert (user["role"], assistant["role"]) == ("user", "assistant")
        assert user["content"].count("<image>") == 1 and user["content"].startswith("<image>\n")
        assert "{" not in user["content"]
        (image,) = sample.images
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8 and image.flags.writeable
        assert 0 < len(assistant["content"]) <= 30


def test_samples_never_end_and_are_counted_from_zero():
    dataset = Digits()
    assert dataset.endless
    assert dataset[10 * len(dataset)].kind in digits.QUESTIONS
    with pytest.raises(IndexError):
        dataset[-1]


def test_reading_digits_is_most_of_what_is_asked():
    kinds = Counter(Digits()[i].kind for i in range(2000))
    assert set(kinds) == set(digits.QUESTIONS)
    assert sum(kinds[kind] for kind in Digits.headline_kinds) / 2000 == pytest.approx(0.75, abs=0.04)


def test_digits_left_and_right_are_independent_and_even():
    pairs = Counter(
        s.messages[1]["content"] for s in map(Digits().__getitem__, range(8000)) if s.kind == "both"
    )
    total = pairs.total()
    assert len(pairs) == 100
    chi_squared = sum((pairs[f"{a} {b}"] - total / 100) ** 2 for a in range(10) for b in range(10)) / (
        total / 100
    )
    assert chi_squared < 150  # 99 degrees of freedom: above 150 once in a thousand


def test_colours_are_told_truly():
    """The brightest pixels of a half have the colour that the answer names."""
    asked = [s for s in map(Digits().__getitem__, range(400)) if s.kind == "colour"]
    assert len(asked) > 20
    for sample in asked:
        left = " left" in sample.messages[0]["content"]
        half = sample.images[0][:, :16] if left else sample.images[0][:, 16:]
        pixels = half.reshape(-1, 3).astype(float)
        brightest = pixels[pixels.sum(1).argsort()[-5:]].mean(0)
        nearest = min(COLOURS, key=lambda name: np.abs(brightest - COLOURS[name]).sum())
        assert nearest == sample.messages[1]["content"]


def test_sums_and_captions_agree_with_a_nearest_neighbour_reader():
    """Answers are about the digits that are drawn: a reader that knows the test scans finds most of them."""
    templates, labels = [], []
    for digit, coverage in enumerate(digits._coverage("test")):
        templates += [c[..., 0] for c in coverage]
        labels += [digit] * len(coverage)
    stack = np.stack(templates).reshape(len(templates), -1)

    def read(half: np.ndarray) -> int:
        grey = np.abs(half.astype(float) - half[0, 0]).sum(-1)
        places = [(y, x) for y in range(7, 10) for x in range(2)]
        crops = np.stack([grey[y : y + 15, x : x + 15].ravel() for y, x in places])
        crops = crops / crops.max()
        distances = ((crops[:, None] - stack) ** 2).sum(-1)
        return labels[np.unravel_index(distances.argmin(), distances.shape)[1]]

    samples = [s for s in Digits("test").evaluation_set(60) if s.kind in ("sum", "caption")]
    right = 0
    for sample in samples:
        left, other = read(sample.images[0][:, :16]), read(sample.images[0][:, 16:])
        words = sample.messages[1]["content"].split()
        said = (
            int(words[0]) == left + other
            if sample.kind == "sum"
            else [int(words[2]), int(words[7])] == [left, other]
        )
        right += said
    assert right / len(samples) > 0.9


def test_the_evaluation_set_is_fixed_and_balanced():
    first, other_seed = Digits("test", 0).evaluation_set(600), Digits("test", 9).evaluation_set(600)
    assert all(same(a, b) for a, b in zip(first, other_seed, strict=True))
    assert Counter(s.kind for s in first) == dict.fromkeys(digits.QUESTIONS, 100)
    for kind in ("left", "right"):
        answers = Counter(s.messages[1]["content"] for s in first if s.kind == kind)
        assert answers == {str(d): 10 for d in range(10)}
    assert len({s.messages[1]["content"] for s in first if s.kind == "both"}) == 100
    kinds = [s.kind for s in first]
    assert kinds != sorted(kinds) and len(set(kinds[:60])) == 6
    assert Digits("test").evaluation_set(0) == []


def test_neighbours_in_the_evaluation_set_say_nothing_about_each_other():
    """Images are exchanged between neighbours for "without looking": that must come out at chance."""
    left = [s for s in Digits("test").evaluation_set(3000) if s.kind == "left"]
    answers = [s.messages[1]["content"] for s in left]
    for shift in (1, 2, 7):
        agree = np.mean([a == b for a, b in zip(answers, answers[shift:], strict=False)])
        assert agree == pytest.approx(0.1, abs=0.05)


def test_texts_cover_whatever_is_said():
    known = set(digits.texts())
    for i in range(1500):
        question, answer = (m["content"] for m in Digits()[i].messages)
        assert question.removeprefix("<image>\n") in known and answer in known


def test_contrastive_pairs_number_their_captions():
    pairs = [Digits().contrastive_pair(i) for i in range(300)]
    for image, text, number in pairs:
        assert image.shape == (32, 32, 3)
        assert 0 <= number < 3600
        assert digits.texts().index(text) >= 0
    assert len({text for _, text, _ in pairs}) == len({number for _, _, number in pairs}) > 250
