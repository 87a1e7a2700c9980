"""Importing MiniMind-V's published weights: state dicts with its names, its shapes and its rotary layout."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_models import text

import minivlm
from minivlm.errors import UserError
from minivlm.factory import load
from minivlm.language import rotate
from minivlm.minimind import halves_from_pairs, import_minimind
from minivlm.tokenizer import bundled_tokenizer

# Small stand-ins with the real names: two layers, and a vision tower that costs nothing.
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "vocab_size": 700,
    "image_size": 32,
    "vision_hidden_size": 16,
    "vision_intermediate_size": 16,
    "vision_num_hidden_layers": 1,
    "vision_num_attention_heads": 2,
}


def layer(index, hidden, wide, q_rows, kv_rows, head_dim, qk_norm):
    """The weights of a decoder layer as MiniMind names them since 2025: name -> shape."""
    shapes = {
        "self_attn.q_proj.weight": (q_rows, hidden),
        "self_attn.k_proj.weight": (kv_rows, hidden),
        "self_attn.v_proj.weight": (kv_rows, hidden),
        "self_attn.o_proj.weight": (hidden, q_rows),
        "mlp.gate_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
        "mlp.up_proj.weight": (wide, hidden),
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
    }
    if qk_norm:
        shapes |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    return {f"model.layers.{index}.{name}": shape for name, shape in shapes.items()}


def shapes_of_v(hidden=512, wide=1408, layers=8, vocab=6400, vision=768):
    """minimind-v, of 2025: 8 heads, 2 key/value heads, linear projection."""
    head_dim = hidden // 8
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for index in range(layers):
        shapes |= layer(index, hidden, wide, hidden, 2 * head_dim, head_dim, qk_norm=False)
    return shapes | {
        "lm_head.weight": (vocab, hidden),
        "vision_proj.vision_proj.0.weight": (hidden, vision),
        "vision_proj.vision_proj.0.bias": (hidden,),
    }


def shapes_of_3v(hidden=768, wide=2432, layers=8, vocab=6400, vision=768):
    """minimind-3v, of 2026: 8 heads, 4 key/value heads, normalised queries and keys, LayerNorm and MLP."""
    head_dim = hidden // 8
    shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    for index in range(layers):
        shapes |= layer(index, hidden, wide, hidden, 4 * head_dim, head_dim, qk_norm=True)
    return shapes | {
        "lm_head.weight": (vocab, hidden),
        "vision_proj.mlp.0.weight": (vision,),
        "vision_proj.mlp.0.bias": (vision,),
        "vision_proj.mlp.1.weight": (hidden, vision),
        "vision_proj.mlp.1.bias": (hidden,),
        "vision_proj.mlp.3.weight": (hidden, hidden),
        "vision_proj.mlp.3.bias": (hidden,),
    }


def small(shapes):
    """Random weights of small shapes, with the head tied as MiniMind saves it."""
    generator = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in shapes.items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    return weights


def small_v(**changes):
    return small(
        shapes_of_v(**{"hidden": 64, "wide": 96, "layers": 2, "vocab": 700, "vision": 16, **changes})
    )


def small_3v(**changes):
    return small(
        shapes_of_3v(**{"hidden": 64, "wide": 96, "layers": 2, "vocab": 700, "vision": 16, **changes})
    )


def as_of_2024(weights):
    """The same model as `weights` under the names and in the rotary layout of the first generation."""
    names = {
        "self_attn.q_proj": "attention.wq", "self_attn.k_proj": "attention.wk",
        "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
        "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2",
        "mlp.up_proj": "feed_forward.w3", "embed_tokens": "tok_embeddings", "lm_head": "output",
    }  # fmt: skip
    old = {}
    for name, tensor in weights.items():
        if "q_proj" in name or "k_proj" in name:
            tensor = tensor.view(-1, 2, 4, 64).transpose(1, 2).reshape(tensor.shape)  # head_dim 8
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        old[name.removeprefix("model.")] = tensor
    return old


def saved(tmp_path, weights, name="sft_vlm_512.pth"):
    torch.save(weights, tmp_path / name)
    return tmp_path / name


def logits(folder):
    model, _ = load(folder)
    with torch.no_grad():
        return model.eval()(text(1, 12)).logits


class TestPublishedShapes:
    @pytest.mark.parametrize(
        ("preset", "shapes", "parameters"),
        [("minimind-v", shapes_of_v(), 26_223_616), ("minimind-3v", shapes_of_3v(), 65_094_912)],
    )
    def test_every_weight_has_its_place(self, tmp_path, preset, shapes, parameters):
        # One half-precision number per tensor, expanded: the file is small whatever the model's size.
        weights = {name: torch.zeros(1).half().expand(shape) for name, shape in shapes.items()}
        assert sum(t.numel() for n, t in weights.items() if n != "lm_head.weight") == parameters
        report = import_minimind(saved(tmp_path, weights), preset)
        assert report.share == 1
        assert report.count("missing") == report.count("unexpected") == report.count("mismatched") == 0
        assert report.count("matched") == len(shapes)


class TestSmall:
    @pytest.mark.parametrize(("preset", "make"), [("minimind-v", small_v), ("minimind-3v", small_3v)])
    def test_weights_arrive(self, tmp_path, preset, make):
        weights = make()
        halved = {name: tensor.half() for name, tensor in weights.items()}
        import_minimind(saved(tmp_path, halved), preset, tmp_path / "out", overrides=SMALL)
        state = load(tmp_path / "out")[0].state_dict()
        for ours, theirs in {
            "model.language_model.embed_tokens.weight": "model.embed_tokens.weight",
            "lm_head.weight": "model.embed_tokens.weight",
            "model.language_model.layers.1.self_attn.k_proj.weight": "model.layers.1.self_attn.k_proj.weight",
            "model.language_model.layers.0.mlp.down_proj.weight": "model.layers.0.mlp.down_proj.weight",
            "model.language_model.norm.weight": "model.norm.weight",
        }.items():
            assert torch.equal(state[ours], weights[theirs].half().float()), ours
        projector = "vision_proj.vision_proj.0" if preset == "minimind-v" else "vision_proj.mlp.1"
        place = 0 if preset == "minimind-v" else 1
        assert torch.equal(
            state[f"model.vision_proj.layers.{place}.weight"], weights[f"{projector}.weight"].half().float()
        )

    def test_wrappers_resume_files_and_tables_are_seen_through(self, tmp_path):
        weights = small_v()
        tables = {"model.freqs_cos": torch.ones(9, 4), "model.freqs_sin": torch.ones(9, 4)}
        tower = {"vision_encoder.vision_model.embeddings.class_embedding": torch.ones(16)}
        wrapped = {f"module._orig_mod.{name}": tensor for name, tensor in (weights | tables | tower).items()}
        path = saved(tmp_path, {"model": wrapped, "optimizer": {"state": {}}, "step": 7})
        report = import_minimind(path, "minimind-v", tmp_path / "out", overrides=SMALL)
        assert report.share == 1
        assert report.count("unexpected") == 0
        assert "own weights of a vision encoder are not used" in str(report)
        import_minimind(saved(tmp_path, weights), "minimind-v", tmp_path / "plain", overrides=SMALL)
        assert torch.equal(logits(tmp_path / "out"), logits(tmp_path / "plain"))

    def test_the_first_generation_is_the_same_model(self, tmp_path):
        weights = small_v()
        import_minimind(saved(tmp_path, weights), "minimind-v", tmp_path / "new", overrides=SMALL)
        path = saved(tmp_path, as_of_2024(weights), "old.pth")
        assert import_minimind(path, "minimind-v", tmp_path / "old", overrides=SMALL).share == 1
        torch.testing.assert_close(logits(tmp_path / "old"), logits(tmp_path / "new"))

    def test_a_head_of_its_own(self, tmp_path):
        weights = small_v()
        weights["lm_head.weight"] = weights["lm_head.weight"] + 1
        report = import_minimind(saved(tmp_path, weights), "minimind-v", tmp_path / "out", overrides=SMALL)
        model, _ = load(tmp_path / "out")
        assert not model.config.tie_word_embeddings
        assert torch.equal(model.lm_head.weight, weights["lm_head.weight"])
        assert "not tied" in str(report)

    @pytest.mark.parametrize("kept", ["lm_head.weight", "model.embed_tokens.weight"])
    def test_one_name_of_a_tied_matrix_is_enough(self, tmp_path, kept):
        weights = small_v()
        matrix = weights["lm_head.weight"]
        dropped = {"lm_head.weight", "model.embed_tokens.weight"} - {kept}
        path = saved(tmp_path, {name: t for name, t in weights.items() if name not in dropped})
        import_minimind(path, "minimind-v", tmp_path / "out", overrides=SMALL)
        model, _ = load(tmp_path / "out")
        assert torch.equal(model.get_input_embeddings().weight, matrix)
        assert model.lm_head.weight is model.get_input_embeddings().weight

    def test_a_longer_tokenizer_gets_more_rows(self, tmp_path):
        # MiniMind's own tokenizer has no <image>: it is added, behind the rows that the file holds.
        weights = small_v(vocab=6400)
        tokenizer = bundled_tokenizer()
        tokenizer.add_tokens([f"word{i}" for i in range(6401 - len(tokenizer))])
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        sizes = {name: value for name, value in SMALL.items() if name != "vocab_size"}
        import_minimind(
            saved(tmp_path, weights),
            "minimind-v",
            tmp_path / "out",
            tokenizer=str(tmp_path / "tokenizer"),
            overrides=sizes,
        )
        model, processor = load(tmp_path / "out")
        rows = model.get_input_embeddings().weight
        assert len(rows) == len(processor.tokenizer) == model.config.vocab_size == 6401
        assert torch.equal(rows[:6400], weights["lm_head.weight"])

    def test_the_report_has_a_line_per_module(self, tmp_path):
        printed = str(import_minimind(saved(tmp_path, small_v()), "minimind-v", overrides=SMALL))
        for module in ("vision_proj", "language_model.layers.0", "language_model.layers.1", "lm_head"):
            assert any(line.split()[:1] == [module] for line in printed.splitlines()), module
        assert "fresh weights, so the model can't see yet" in printed


class TestRotaryLayout:
    def test_neighbouring_pairs_and_halves_give_the_same_scores(self):
        # The first generation multiplies complex numbers made of neighbours; this does just that.
        heads, dim, width, length = 2, 8, 16, 5
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(heads * dim, width, generator=generator) for _ in range(2)]
        x = torch.randn(length, width, generator=generator)
        angles = torch.outer(torch.arange(length).float(), 1e6 ** -(torch.arange(0, dim, 2) / dim))
        turn = torch.polar(torch.ones_like(angles), angles)[:, None]

        def turned(weight):
            pairs = torch.view_as_complex(F.linear(x, weight).view(length, heads, dim // 2, 2))
            return torch.view_as_real(pairs * turn).flatten(2)

        query, key = (turned(weight) for weight in weights)
        both = torch.cat([angles, angles], dim=-1)
        ours = [
            rotate(
                F.linear(x, halves_from_pairs(w, dim)).view(length, heads, dim).transpose(0, 1),
                both.cos(),
                both.sin(),
            )
            for w in weights
        ]
        expected = torch.einsum("qhd,khd->hqk", query, key)
        torch.testing.assert_close(torch.einsum("hqd,hkd->hqk", *ours), expected)


class TestRefusals:
    def refused(self, tmp_path, weights, words, preset="minimind-v", overrides=SMALL):
        with pytest.raises(UserError, match=words):
            import_minimind(saved(tmp_path, weights), preset, tmp_path / "out", overrides=overrides)
        assert not (tmp_path / "out").exists()

    def test_the_other_preset(self, tmp_path):
        weights = {name: torch.zeros(1).half().expand(shape) for name, shape in shapes_of_3v().items()}
        self.refused(tmp_path, weights, "fits the preset 'minimind-3v'", overrides=None)

    def test_another_width(self, tmp_path):
        self.refused(tmp_path, small_v(wide=80), "another shape.*mlp.gate_proj")

    def test_more_layers_than_the_model_has(self, tmp_path):
        self.refused(tmp_path, small_v(layers=4), "language_model only 5.%.*unexpected")

    def test_a_language_model_alone(self, tmp_path):
        weights = {name: t for name, t in small_v().items() if "vision_proj" not in name}
        self.refused(tmp_path, weights, "vision_proj only 0%.*it is a language model alone")

    def test_another_projector(self, tmp_path):
        weights = small_3v()
        for name in [name for name in weights if "vision_proj" in name]:
            del weights[name]
        weights |= {
            "vision_proj.mlp.0.weight": torch.zeros(64, 64),
            "vision_proj.mlp.0.bias": torch.zeros(64),
        }
        weights |= {
            "vision_proj.mlp.2.weight": torch.zeros(64, 64),
            "vision_proj.mlp.2.bias": torch.zeros(64),
        }
        self.refused(tmp_path, weights, "vision_proj only", preset="minimind-3v")

    def test_a_mixture_of_experts(self, tmp_path):
        weights = small_v() | {"model.layers.0.mlp.experts.0.up_proj.weight": torch.zeros(2, 2)}
        self.refused(tmp_path, weights, "mixture of experts")

    def test_a_preset_that_is_not_miniminds(self, tmp_path):
        self.refused(tmp_path, small_v(), "no preset of MiniMind-V", preset="tiny")

    def test_no_file(self, tmp_path):
        with pytest.raises(UserError, match="there is no file"):
            import_minimind(tmp_path / "nowhere.pth")

    @pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04 cut"])
    def test_a_broken_file(self, tmp_path, content):
        (tmp_path / "broken.pth").write_bytes(content)
        with pytest.raises(UserError, match=r"broken\.pth"):
            import_minimind(tmp_path / "broken.pth")

    @pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}])
    def test_no_weights_in_it(self, tmp_path, content):
        with pytest.raises(UserError, match="no weights by name"):
            import_minimind(saved(tmp_path, content))

    def test_code_in_a_file_is_not_run(self, tmp_path):
        class Trap:
            def __reduce__(self):
                return (tmp_path.joinpath("sprung").touch, ())

        path = saved(tmp_path, {"model.norm.weight": Trap()})
        with pytest.raises(UserError, match="was not opened"):
            import_minimind(path)
        assert not (tmp_path / "sprung").exists()


def test_sees_with_the_encoder_that_is_given(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    settings = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tower = CLIPVisionModel(CLIPVisionConfig(**settings, image_size=32, patch_size=16)).eval()
    tower.save_pretrained(tmp_path / "clip")
    sizes = {name: value for name, value in SMALL.items() if not name.startswith(("vision", "image"))}
    report = import_minimind(
        saved(tmp_path, small_v()),
        "minimind-v",
        tmp_path / "out",
        vision_from=str(tmp_path / "clip"),
        overrides=sizes,
    )
    assert f"vision encoder: from {tmp_path / 'clip'}" in str(report)
    model, processor = load(tmp_path / "out")
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = tower(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(model.eval().model.vision_encoder(pixels), expected)
    assert processor.image_tokens == 4
    assert minivlm.load is load


def test_refuses_an_encoder_of_another_width(tmp_path):
    from transformers import CLIPVisionConfig, CLIPVisionModel

    settings = {"hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**settings, image_size=32, patch_size=16)).save_pretrained(
        tmp_path / "clip"
    )
    sizes = {name: value for name, value in SMALL.items() if not name.startswith(("vision", "image"))}
    with pytest.raises(UserError, match=r"vision_proj only.*\[64, 16\], should be \[64, 24\]"):
        import_minimind(
            saved(tmp_path, small_v()), "minimind-v", vision_from=str(tmp_path / "clip"), overrides=sizes
        )
