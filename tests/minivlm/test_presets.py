"""Presets, overrides, and the refusal of sizes that don't fit together."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import minivlm
from minivlm.config import MiniVLMConfig
from minivlm.errors import UserError
from minivlm.model import MiniVLMForConditionalGeneration
from minivlm.presets import PRESETS, preset
from minivlm.train_config import TrainConfig

SMALL_TOWER = {
    "vision_hidden_size": 32,
    "vision_intermediate_size": 32,
    "vision_num_hidden_layers": 1,
    "vision_num_attention_heads": 2,
    "num_hidden_layers": 1,
}


def sizes(name: str) -> dict[str, int]:
    """Parameters of each part of a preset, without allocating any."""
    with torch.device("meta"):
        model = MiniVLMForConditionalGeneration(MiniVLMConfig(**PRESETS[name].model))
    everything = sum(p.numel() for p in model.parameters())
    vision = sum(p.numel() for p in model.model.vision_encoder.parameters())
    return {"all": everything, "outside vision": everything - vision}


class TestSizes:
    @pytest.mark.parametrize(("name", "expected"), [("minimind-v", 26_223_616), ("minimind-3v", 65_094_912)])
    def test_published_counts(self, name, expected):
        assert sizes(name)["outside vision"] == expected

    @pytest.mark.parametrize(
        ("name", "part", "low", "high"),
        [
            ("tiny", "all", 0.25e6, 0.35e6),
            ("base", "outside vision", 95e6, 105e6),
        ],
    )
    def test_about(self, name, part, low, high):
        assert low < sizes(name)[part] < high

    @pytest.mark.parametrize(
        ("name", "tokens"),
        [("tiny", 16), ("tiny8", 16), ("colab", 16), ("minimind-v", 196), ("minimind-3v", 64), ("base", 64)],
    )
    def test_tokens_of_an_image(self, name, tokens):
        assert MiniVLMConfig(**PRESETS[name].model).image_tokens == tokens

    def test_the_size_of_the_colab_log(self):
        config = MiniVLMConfig(**PRESETS["colab"].model)
        sizes = (config.hidden_size, config.num_attention_heads, config.head_dim, config.num_hidden_layers)
        assert sizes == (320, 10, 32, 8)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_answers(name):
    changes = SMALL_TOWER if PRESETS[name].model["vision_kind"] != "conv_vit" else {"num_hidden_layers": 1}
    model, processor = minivlm.build(name, changes, seed=0)
    side = model.config.image_size
    question = processor.ask("what is this?", [torch.zeros(side, side, 3, dtype=torch.uint8).numpy()])
    with torch.no_grad():
        logits = model.eval()(**question).logits
    assert logits.shape == (*question["input_ids"].shape, model.config.vocab_size)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", PRESETS)
def test_training_defaults_are_fields_of_the_trainer(name):
    assert PRESETS[name].training.keys() <= vars(TrainConfig()).keys()
    TrainConfig(preset=name).resolved()


def test_presets_need_no_torch():
    code = "import sys, minivlm, minivlm.presets; minivlm.PRESETS; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_preset():
    with pytest.raises(UserError, match="did you mean 'minimind-v'"):
        preset("minimindv")


class TestOverrides:
    @pytest.mark.parametrize(
        ("field", "text", "value"),
        [
            ("hidden_size", "32", 32),
            ("rms_norm_eps", "1e-6", 1e-6),
            ("attention_dropout", "0", 0.0),
            ("qk_norm", "true", True),
            ("tie_word_embeddings", "False", False),
            ("projector", "linear", "linear"),
            ("head_dim", "none", 16),
            ("head_dim", "8", 8),
        ],
    )
    def test_text_becomes_the_type_of_the_field(self, field, text, value):
        made, _ = minivlm.build("tiny", {field: text, "num_hidden_layers": "1"})
        assert getattr(made.config, field) == value

    def test_one_entry_of_the_rotary_settings(self):
        made, _ = minivlm.build(
            "tiny", {"rope_parameters.rope_type": "linear", "rope_parameters.factor": "2.5"}
        )
        assert made.config.rope_parameters == {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5}

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            ({"hiden_size": "32"}, "did you mean 'hidden_size'"),
            ({"rope_theta": "1e5"}, "did you mean 'rope_parameters.rope_theta'"),
            ({"hidden_size": "big"}, "must be of type int"),
            ({"qk_norm": "maybe"}, "must be of type bool"),
            ({"vocab_size": "100"}, "too small for a tokenizer of 680"),
            ({"image_token_id": "7"}, "follows from the tokenizer"),
            ({"num_attention_heads": "5"}, "64 can't be divided among 5"),
            ({"num_key_value_heads": "3"}, "4 query heads can't share 3"),
            ({"head_dim": "15"}, "head_dim is 15"),
            ({"hidden_size": "-64"}, "hidden_size is -64"),
            ({"num_hidden_layers": "0"}, "num_hidden_layers is 0"),
            ({"num_attention_heads": "0"}, "num_attention_heads is 0"),
            ({"projector": "cnn"}, "projector is 'cnn'"),
            ({"vision_kind": "vit"}, "vision_kind is 'vit'"),
            ({"image_size": "30"}, "no multiple of patch_size"),
            ({"pixel_shuffle": "3"}, "pixel_shuffle 3"),
            ({"vision_layer": "-2"}, "vision_layer is -2"),
            ({"vision_kind": "clip", "vision_layer": "9"}, "vision_layer is 9"),
            ({"attention_dropout": "2"}, "attention_dropout is 2"),
            ({"rope_parameters.rope_type": "spiral"}, "rope_type is 'spiral'"),
            ({"rope_parameters.rope_type": "yarn"}, "factor"),
            ({"rope_parameters.rope_type": "ntk", "rope_parameters.factor": "0.5"}, "at least 1"),
        ],
    )
    def test_refusals_name_the_field(self, overrides, words):
        with pytest.raises(UserError, match=words):
            minivlm.build("tiny", overrides)


class TestSeed:
    def test_decides_the_weights_and_nothing_else(self):
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        one, _ = minivlm.build("tiny", seed=3)
        assert torch.equal(torch.rand(1), expected)
        same, _ = minivlm.build("tiny", seed=3)
        other, _ = minivlm.build("tiny", seed=4)
        assert torch.equal(one.lm_head.weight, same.lm_head.weight)
        assert not torch.equal(one.lm_head.weight, other.lm_head.weight)


def test_config_round_trip(tmp_path):
    config = MiniVLMConfig(**PRESETS["minimind-3v"].model)
    config.save_pretrained(tmp_path)
    again = MiniVLMConfig.from_pretrained(tmp_path)
    assert again.to_diff_dict() == config.to_diff_dict()
