"""The configuration against tables, tokenizer, processor and adapters of real models."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import peft
import pytest
import test_traps_transformers as traps
import torch
import transformers as hf
from torch import nn

import vlmdoctor
from vlmdoctor.finding import Finding

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",
    "ignore:Model has `tie_word_embeddings=True`:UserWarning",
)


def found(model: nn.Module, **more: Any) -> list[Finding]:
    report = vlmdoctor.check(model, select=["CFG3", "PARAM3"], **more)
    assert report.crashed == ()
    return list(report.findings)


def tied_llama() -> Any:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**families.TEXT, tie_word_embeddings=True))


def gemma3() -> Any:
    config = hf.Gemma3Config(
        text_config=families.GEMMA,
        vision_config=families.VISION,
        image_token_index=families.IMAGE,
        mm_tokens_per_image=1,
    )
    return hf.Gemma3ForConditionalGeneration(config)


def smolvlm() -> Any:
    config = hf.SmolVLMConfig(
        vision_config=families.FINE_VISION,
        text_config=hf.LlamaConfig(**families.TEXT),
        image_token_id=families.IMAGE,
        scale_factor=2,
    )
    return hf.SmolVLMForConditionalGeneration(config)


MODELS: dict[str, Callable[[], Any]] = {
    **{name: (lambda name=name: families.build(name)[0]) for name in (*families.DECODERS, *families.VLMS)},
    "qwen2.5-vl": traps.qwen,
    "mllama": traps.mllama,
    "llama, tied": tied_llama,
    "gemma3": gemma3,
    "smolvlm": smolvlm,
}


@pytest.mark.parametrize("name", MODELS)
def test_healthy(name: str) -> None:
    assert found(MODELS[name]()) == []


class Tokenizer:
    """The tokens of a small vocabulary and what was added to it."""

    def __init__(self, size: int, **added: int) -> None:
        self.vocabulary = {f"t{number}": number for number in range(size)} | added

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


class TestTies:
    def test_head_with_a_tensor_of_its_own(self) -> None:
        model = tied_llama()
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        (finding,) = found(model)
        assert finding.rule == "tie-broken"
        assert finding.measured == {"tied": False, "equal_values": True}

    def test_untied_by_modules_to_save(self) -> None:
        config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "embed_tokens"])
        assert [f.rule for f in found(peft.get_peft_model(tied_llama(), config))] == ["tie-broken"]

    def test_frozen_twins_are_let_be(self) -> None:
        model = tied_llama()
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.requires_grad_(False)
        assert [finding.rule for finding in found(model)] == ["frozen-by-mistake"]  # and no broken tie

    def test_tied_by_hand(self) -> None:
        model = families.build("llama")[0]
        model.lm_head.weight = model.model.embed_tokens.weight
        (finding,) = found(model)
        assert (finding.rule, finding.at) == ("dropped-on-save", ("lm_head.weight",))

    def test_one_layer_twice(self, tmp_path: Any) -> None:
        """The dry run foretells what saving raises."""
        model = families.build("llama")[0]
        model.model.layers[1] = model.model.layers[0]
        (finding,) = found(model)
        assert finding.message.startswith("save_pretrained will raise")
        with pytest.raises(RuntimeError, match="shared tensors"):
            model.save_pretrained(tmp_path)


class TestTables:
    def test_tokens_added_and_not_resized(self) -> None:
        model = families.build("llama")[0]
        (finding,) = found(model, tokenizer=Tokenizer(128, **{"<loc>": 128, "</loc>": 129}))
        assert finding.rule == "tokens-without-rows"
        assert "'<loc>' and '</loc>'" in finding.message
        model.resize_token_embeddings(130, mean_resizing=False)
        assert found(model, tokenizer=Tokenizer(128, **{"<loc>": 128, "</loc>": 129})) == []

    def test_placeholder_without_a_row(self) -> None:
        """As in Gemma3's text-only models, whose tokenizer knows the image token."""
        model = families.build("llama")[0]
        assert found(model, tokenizer=Tokenizer(128, **{"<image_soft_token>": 128})) == []

    def test_more_rows_than_tokens(self) -> None:
        assert found(families.build("llama")[0], tokenizer=Tokenizer(100)) == []

    def test_head_replaced_without_the_configuration(self) -> None:
        model = families.build("llama")[0]
        model.lm_head = nn.Linear(32, 140, bias=False)
        assert [f.rule for f in found(model)] == ["vocab-size-disagrees"]


class Wrapper(nn.Module):
    """A module of the user's around a model of transformers."""

    def __init__(self, inner: nn.Module, width: int = 1) -> None:
        super().__init__()
        self.inner, self.own = inner, nn.Linear(width, width)


class TestWrapped:
    def test_seen_through(self) -> None:
        model = tied_llama()
        assert found(Wrapper(model)) == []
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        assert [f.rule for f in found(Wrapper(model))] == ["tie-broken"]

    def test_a_part_is_not_the_model(self) -> None:
        """A language model's vocabulary says nothing about a module that is mostly something else."""
        model = families.build("llama")[0]
        model.lm_head = nn.Linear(32, 140, bias=False)
        report = vlmdoctor.check(Wrapper(model, width=512), select=["CFG304"])
        assert report.skipped == (("vocab-size-disagrees", "the model has no configuration of transformers"),)


def processor(**changes: Any) -> Any:
    """What LLaVA's processor tells about itself."""
    size = {"height": 8, "width": 8}
    made = {
        "image_processor": SimpleNamespace(do_center_crop=True, crop_size=size, size={"shortest_edge": 8}),
        "tokenizer": Tokenizer(128),
        "image_token_id": families.IMAGE,
        "patch_size": 4,
        "num_additional_image_tokens": 1,
        "vision_feature_select_strategy": "default",
    }
    return SimpleNamespace(**(made | changes))


class TestProcessor:
    def test_fits(self) -> None:
        assert found(families.build("llava")[0], processor=processor()) == []

    @pytest.mark.parametrize(
        ("changes", "says"),
        [
            ({"patch_size": 2}, "patch size: 2, expected 4"),
            ({"num_additional_image_tokens": 0}, "class token): -1, expected 0"),
            ({"vision_feature_select_strategy": "full"}, "class token): 1, expected 0"),
            (
                {
                    "image_processor": SimpleNamespace(
                        do_center_crop=True, crop_size={"height": 16, "width": 16}
                    )
                },
                "image size: 16, expected 8",
            ),
            ({"image_token_id": 7}, "the model looks for image token 100, the processor writes 7"),
        ],
    )
    def test_misfit(self, changes: dict[str, Any], says: str) -> None:
        (finding,) = found(families.build("llava")[0], processor=processor(**changes))
        assert says in finding.message
        assert finding.severity == "error"


class TestAdapters:
    @pytest.mark.parametrize(
        ("family", "settings"),
        [
            ("llava", {"target_modules": "all-linear"}),
            ("llava", {"target_modules": r".*language_model.*\.(q_proj|v_proj)"}),
            ("llava", {"target_modules": ["q_proj", "v_proj", "fc1"]}),
            ("llava", {"target_modules": ["gate_proj", "up_proj"]}),
            ("llava", {"target_modules": ["q_proj"], "exclude_modules": r".*vision.*"}),
            ("qwen2_vl", {"target_modules": ["q_proj", "v_proj"]}),
            ("llama", {"target_modules": ["q_proj"], "layers_to_transform": [0]}),
        ],
    )
    def test_meant(self, family: str, settings: dict[str, Any]) -> None:
        assert found(peft.get_peft_model(families.build(family)[0], peft.LoraConfig(**settings))) == []

    @pytest.mark.parametrize("family", ["llava", "idefics3"])
    def test_the_tower_has_the_same_names(self, family: str) -> None:
        model = families.build(family)[0]
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj", "v_proj"]))
        (finding,) = found(adapted)
        assert (finding.rule, finding.severity) == ("lora-on-vision", "warning")
        # The pattern that it proposes keeps them off.
        assert finding.fix is not None
        given: dict[str, Any] = {}
        exec(finding.fix.commands[0], given)
        repaired = peft.get_peft_model(
            families.build(family)[0], peft.LoraConfig(target_modules=given["target_modules"])
        )
        assert found(repaired) == []

    def test_declared_as_trainable(self) -> None:
        adapted = peft.get_peft_model(
            families.build("llava")[0], peft.LoraConfig(target_modules=["q_proj", "v_proj"])
        )
        assert found(adapted, trainable=["lora_A", "lora_B"]) == []

    @pytest.mark.parametrize("trainable", [False, True])
    def test_loaded_for_inference(self, trainable: bool, tmp_path: Path) -> None:
        model, batch = families.build("llama")
        settings = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
        peft.get_peft_model(model, settings).save_pretrained(tmp_path)
        base, _ = families.build("llama")
        adapted = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=trainable)
        optimizer = torch.optim.AdamW(adapted.parameters(), lr=1e-3)
        report = vlmdoctor.check(adapted, batch, optimizer=optimizer, checkpoint=tmp_path)
        assert report.crashed == ()
        wanted = [] if trainable else ["frozen-by-mistake"]
        assert [finding.rule for finding in report.findings] == wanted

    def test_layers_by_number(self) -> None:
        settings = peft.LoraConfig(target_modules=["q_proj"], layers_to_transform=[0])
        (finding,) = found(peft.get_peft_model(families.build("llava")[0], settings))
        assert finding.rule == "lora-layer-numbers"


def test_quantised_projector() -> None:
    model = families.build("llava")[0]
    weight = torch.zeros(32 * 32 // 2, 1, dtype=torch.uint8)
    model.model.multi_modal_projector.linear_1.weight = nn.Parameter(weight, requires_grad=False)
    assert [f.rule for f in found(model)] == ["quantised-projector"]
