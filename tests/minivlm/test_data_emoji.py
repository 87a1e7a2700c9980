"""The built-in drawings: three hands, one of which is kept for the test."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from minivlm.data import emoji, make_assets
from minivlm.data.emoji import ASSETS, STYLES, Emoji, things
from minivlm.errors import UserError


def same(a, b) -> bool:
    return a.messages == b.messages and a.kind == b.kind and np.array_equal(a.images[0], b.images[0])


def test_two_hundred_things_with_names_of_one_or_two_words():
    assert len(things()) == 200
    for field in ("code", "name", "phrase"):
        assert len({getattr(thing, field) for thing in things()}) == 200
    assert all(1 <= len(thing.name.split()) <= 2 for thing in things())
    assert all(thing.phrase.endswith(thing.name) for thing in things())
    assert len({thing.kind for thing in things()}) == 10


def test_every_drawing_is_there_and_no_two_are_the_same():
    sheets = {style: emoji.read_drawings(style) for style in STYLES}
    for drawings in sheets.values():
        assert drawings.shape == (200, 32, 32, 4)
        assert ((drawings[..., 3] > 128).mean((1, 2)) > 0.05).all()
    assert len({drawing.tobytes() for drawings in sheets.values() for drawing in drawings}) == 600


def test_the_test_style_is_never_trained_on():
    assert not set(emoji.STYLES_OF_SPLIT["train"]) & set(emoji.STYLES_OF_SPLIT["test"])
    assert set().union(*emoji.STYLES_OF_SPLIT.values()) == set(STYLES)


def test_the_assets_are_small_and_come_with_their_licenses():
    assert sum(path.stat().st_size for path in ASSETS.iterdir()) < 1_100_000
    notice = (ASSETS / "emoji.LICENSE.txt").read_text()
    for words in ("Noto", "Apache", "Twemoji", "Attribution 4.0", "Fluent", "MIT", "Microsoft", *STYLES):
        assert words in notice
    digits_notice = (ASSETS / "digits.LICENSE.txt").read_text()
    assert "UCI" in digits_notice and "Attribution 4.0" in digits_notice and "scikit-learn" in digits_notice
    for name in ("LICENSE-Apache-2.0.txt", "LICENSE-CC-BY-4.0.txt"):
        assert name in notice and (ASSETS / name).is_file()


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_sample_depends_on_its_key_alone(split):
    first, again = Emoji(split, seed=3), Emoji(split, seed=3)
    later = again[500]
    assert same(first[7], again[7]) and same(first[500], later)
    assert not same(first[7], Emoji(split, seed=4)[7])
    with pytest.raises(IndexError):
        first[-1]


def test_a_sample_is_one_image_one_question_one_answer():
    known = set(emoji.texts())
    for i in range(300):
        sample = Emoji()[i]
        question, answer = (m["content"] for m in sample.messages)
        assert question.startswith("<image>\n")
        assert question.removeprefix("<image>\n") in known and answer in known
        (image,) = sample.images
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8
        # Something is drawn: an eighth of the canvas differs from the background, which fills some corner.
        corners = {tuple(image[y, x]) for y in (0, -1) for x in (0, -1)}
        assert min((image != np.array(c)).any(-1).mean() for c in corners) > 0.04


def test_blending_is_exact():
    """Fully opaque pixels show the drawing, fully clear ones the background."""
    noto = emoji.read_drawings("noto").astype(float)
    colour, clear = emoji._scaled("noto")[32]
    solid = noto[..., 3] == 255
    assert np.abs(colour[solid] - noto[..., :3][solid]).max() < 0.01
    assert clear[noto[..., 3] == 255].max() < 1e-6
    assert clear[noto[..., 3] == 0].min() > 1 - 1e-6
    for side in emoji.SCALES:
        colour, clear = emoji._scaled("noto")[side]
        assert colour.shape == (200, side, side, 3) and clear.shape == (200, side, side, 1)
        # Shrinking keeps the mean opacity.
        assert clear.mean() == pytest.approx(1 - noto[..., 3].mean() / 255, abs=1e-3)
        assert (colour <= 255 * (1 - clear) + 0.01).all()


def test_the_evaluation_set_is_fixed_and_balanced():
    first, other_seed = Emoji("test", 0).evaluation_set(600), Emoji("test", 9).evaluation_set(600)
    assert all(same(a, b) for a, b in zip(first, other_seed, strict=True))
    assert Counter(s.kind for s in first) == dict.fromkeys(emoji.QUESTIONS, 200)
    names = [s.messages[1]["content"] for s in first if s.kind == "name"]
    assert sorted(names) == sorted(thing.name for thing in things())


def test_contrastive_pairs_number_the_things():
    for i in range(100):
        image, text, number = Emoji().contrastive_pair(i)
        assert image.shape == (32, 32, 3)
        assert text == things()[number].caption


def test_the_sheets_are_made_from_the_packages(tmp_path, monkeypatch):
    """With a tiny stand-in for the packages: one drawing of one colour per thing and style."""
    import PIL.Image

    folders = {
        "noto": "emoji-datasource-google/img/google/64",
        "twemoji": "emoji-datasource-twitter/img/twitter/64",
        "fluent": "@lobehub/fluent-emoji-3d/assets",
    }
    chosen = things()[:25]
    monkeypatch.setattr(make_assets, "things", lambda: chosen)
    monkeypatch.setattr(make_assets, "sheet_path", lambda style: tmp_path / f"{style}.webp")
    with pytest.raises(UserError, match="no drawing of"):
        make_assets.make_emoji(tmp_path)
    for style, folder in folders.items():
        (tmp_path / folder).mkdir(parents=True)
        for i, thing in enumerate(chosen):
            name = thing.code.removesuffix("-fe0f") if style == "fluent" else thing.code
            suffix = "webp" if style == "fluent" else "png"
            drawing = PIL.Image.new("RGBA", (64, 64), (i * 10, 0, 0, 255))
            drawing.save(tmp_path / folder / f"{name}.{suffix}", lossless=True)
    made = make_assets.make_emoji(tmp_path)
    assert [path.name for path in made] == [f"{style}.webp" for style in STYLES]
    with PIL.Image.open(Path(made[0])) as sheet:
        assert sheet.size == (640, 64)
        assert sheet.convert("RGBA").getpixel((4 * 32 + 5, 32 + 5)) == (240, 0, 0, 255)


def test_the_digits_sheet_is_made_again_bit_for_bit(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    import PIL.Image

    monkeypatch.setattr(make_assets, "DIGITS_ASSET", tmp_path / "digits.png")
    with PIL.Image.open(make_assets.make_digits()) as made, PIL.Image.open(ASSETS / "digits.png") as shipped:
        assert np.array_equal(np.asarray(made), np.asarray(shipped))
