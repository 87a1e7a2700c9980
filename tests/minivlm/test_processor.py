"""Images, the bundled tokenizer, the chat template, and what of a conversation is learned."""

from __future__ import annotations

import json
import pickle

import numpy as np
import PIL.Image
import pytest
import torch

import minivlm
from minivlm.data import corpus_texts
from minivlm.errors import UserError
from minivlm.processor import IGNORED, MiniVLMImageProcessor, MiniVLMProcessor
from minivlm.tokenizer import FOLDER, IMAGE, PAD, STOP, VOCABULARY, bundled_tokenizer, load_tokenizer, make

ASKED = {"role": "user", "content": "<image>\nwhat is left?"}
ANSWERED = {"role": "assistant", "content": "7"}


@pytest.fixture(scope="module")
def processor() -> MiniVLMProcessor:
    return minivlm.build("tiny", seed=0)[1]


@pytest.fixture(scope="module")
def tokenizer():
    return bundled_tokenizer()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class TestImages:
    def test_is_its_formula(self):
        mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
        pixels = noise(8, 8, 3)
        found = MiniVLMImageProcessor(8, mean, std).preprocess_array(pixels)
        expected = (pixels / 255.0 - mean) / std
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-6)

    def test_array_and_picture_agree(self):
        process, pixels = MiniVLMImageProcessor(8), noise(8, 8, 3)
        picture = PIL.Image.fromarray(pixels)
        np.testing.assert_array_equal(process.preprocess_array(pixels), process.preprocess_array(picture))

    @pytest.mark.parametrize(
        "mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "I;16", "I"]
    )
    def test_modes(self, mode):
        source = PIL.Image.fromarray(noise(20, 10, 3))
        picture = source.convert("L").convert(mode) if mode in ("PA", "I;16") else source.convert(mode)
        found = MiniVLMImageProcessor(8).preprocess_array(picture)
        assert found.shape == (3, 8, 8)
        assert np.isfinite(found).all()

    def test_sixteen_bits_keep_their_shades(self):
        shades = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
        found = MiniVLMImageProcessor(8).preprocess_array(PIL.Image.fromarray(shades))
        np.testing.assert_allclose(found[0] * 0.5 + 0.5, shades / 65535, atol=0.01)

    def test_transparency_becomes_white(self):
        clear = PIL.Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        np.testing.assert_allclose(MiniVLMImageProcessor(8).preprocess_array(clear), 1.0)

    @pytest.mark.parametrize(
        ("array", "words"),
        [
            (np.zeros((8, 8, 3), np.float32), "rescaled twice"),
            (np.zeros((3, 8, 8), np.uint8), r"\[3, 8, 8\]"),
            (np.zeros((2, 8, 8, 3), np.uint8), r"\[2, 8, 8, 3\]"),
        ],
    )
    def test_refusals(self, array, words):
        with pytest.raises(ValueError, match=words):
            MiniVLMImageProcessor(8).preprocess_array(array)

    @pytest.mark.parametrize(
        ("images", "count"),
        [
            (noise(8, 8, 3), 1),
            ([noise(8, 8, 3)] * 2, 2),
            (noise(3, 8, 8, 3), 3),
            (PIL.Image.new("L", (4, 9)), 1),
        ],
    )
    def test_one_or_many(self, images, count):
        found = MiniVLMImageProcessor(8)(images, return_tensors="pt")["pixel_values"]
        assert found.shape == (count, 3, 8, 8)
        assert found.dtype == torch.float32


class TestTokenizer:
    def test_has_its_size(self, tokenizer):
        assert len(tokenizer) == VOCABULARY == 680
        assert sorted(tokenizer.get_vocab().values()) == list(range(680))

    def test_files_are_made_from_the_corpora(self, tmp_path):
        make(corpus_texts()).save_pretrained(tmp_path)
        for file in FOLDER.iterdir():
            assert (tmp_path / file.name).read_bytes() == file.read_bytes(), file.name

    @pytest.mark.parametrize(
        "text", ["what is left?", "  two  spaces\n\ttab", "naïve café", "数字は？", "\x00\x7f🙂"]
    )
    def test_any_text_survives(self, tokenizer, text):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text

    def test_padding_is_not_the_stop_token(self, tokenizer):
        assert tokenizer.pad_token == PAD
        assert tokenizer.eos_token == STOP
        assert tokenizer.pad_token_id != tokenizer.eos_token_id

    def test_another_tokenizer_gets_what_it_lacks(self, tmp_path):
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate("abcdefgh?\n")}, []))
        backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
        PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
        loaded = load_tokenizer(str(tmp_path))
        model, processor = minivlm.build("tiny", tokenizer=str(tmp_path), seed=0)
        assert len({loaded.pad_token_id, loaded.eos_token_id, loaded.convert_tokens_to_ids(IMAGE)}) == 3
        assert len(processor.tokenizer) <= model.config.vocab_size
        ids, labels = processor.encode([ASKED, {"role": "assistant", "content": "bad"}], 1)
        assert ids.count(model.config.image_token_id) == 16
        learned = [label for label in labels if label != IGNORED]
        assert learned == [*loaded.convert_tokens_to_ids(["b", "a", "d"]), loaded.eos_token_id]

    def test_refusal(self, tmp_path):
        with pytest.raises(UserError, match="tokenizer"):
            load_tokenizer(str(tmp_path / "nowhere"))


class TestEncode:
    def test_answers_and_their_stop_tokens_are_learned(self, processor):
        messages = [
            ASKED,
            ANSWERED,
            {"role": "user", "content": "and right?"},
            {"role": "assistant", "content": "12"},
        ]
        ids, labels = processor.encode(messages, 1)
        assert len(ids) == len(labels)
        assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
        learned = processor.tokenizer.decode([label for label in labels if label != IGNORED])
        assert learned == "7<|im_end|>12<|im_end|>"

    def test_an_image_is_as_many_tokens_as_features(self, processor):
        ids, labels = processor.encode([ASKED, ANSWERED], 1)
        places = [i for i, token in enumerate(ids) if token == processor.image_token_id]
        assert len(places) == processor.image_tokens == 16
        assert places == list(range(places[0], places[0] + 16))
        assert all(labels[i] == IGNORED for i in places)

    @pytest.mark.parametrize(("text", "images"), [("no image", 1), ("<image><image>", 1), ("<image>", 0)])
    def test_refuses_another_number_of_images(self, processor, text, images):
        with pytest.raises(ValueError, match=rf"has {text.count('<image>')} <image>.*{images} images"):
            processor.encode([{"role": "user", "content": text}, ANSWERED], images)

    def test_results_are_the_callers_own(self, processor):
        first, _ = processor.encode([ASKED, ANSWERED], 1)
        first.clear()
        assert processor.encode([ASKED, ANSWERED], 1)[0]

    def test_a_question_is_the_beginning_of_its_conversation(self, processor):
        asked = processor.ask("what is left?", [noise(32, 32, 3)])
        ids, labels = processor.encode([ASKED, ANSWERED], 1)
        prompt = asked["input_ids"][0].tolist()
        assert ids[: len(prompt)] == prompt
        assert labels[len(prompt)] != IGNORED

    def test_parts_and_text_are_the_same(self, processor):
        parts = [{"type": "image"}, {"type": "text", "text": "what is left?"}]
        as_parts = processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}], tokenize=False
        )
        as_text = processor.tokenizer.apply_chat_template([ASKED], tokenize=False)
        assert as_parts == as_text


class TestProcessor:
    def test_texts_and_images_together(self, processor):
        inputs = processor(
            text=["<image> one", "<image><image> two and more"],
            images=[[noise(32, 32, 3)], [noise(9, 7, 3)] * 2],
            return_tensors="pt",
            padding=True,
        )
        assert inputs["pixel_values"].shape == (3, 3, 32, 32)
        assert (inputs["input_ids"] == processor.image_token_id).sum(1).tolist() == [16, 32]
        assert inputs["attention_mask"].sum(1).tolist() != [inputs["input_ids"].shape[1]] * 2

    def test_refuses_another_number_of_images(self, processor):
        with pytest.raises(ValueError, match="2 <image> placeholders for 1 images"):
            processor(text="<image><image>", images=noise(8, 8, 3))

    def test_template_with_images_inside(self, processor):
        parts = [
            {"type": "image", "image": PIL.Image.fromarray(noise(9, 9, 3))},
            {"type": "text", "text": "what?"},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
        )  # fmt: skip
        assert (inputs["input_ids"] == processor.image_token_id).sum() == 16
        assert inputs["pixel_values"].shape == (1, 3, 32, 32)

    def test_round_trips(self, processor, tmp_path):
        processor.encode([ASKED, ANSWERED], 1)
        processor.save_pretrained(tmp_path)
        assert all(json.loads(file.read_text()) for file in tmp_path.glob("*.json"))
        for again in (MiniVLMProcessor.from_pretrained(tmp_path), pickle.loads(pickle.dumps(processor))):
            assert again.encode([ASKED, ANSWERED], 1) == processor.encode([ASKED, ANSWERED], 1)
            picture = noise(20, 10, 3)
            one, other = (p.image_processor.preprocess_array(picture) for p in (processor, again))
            np.testing.assert_array_equal(one, other)
