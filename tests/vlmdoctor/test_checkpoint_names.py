"""A checkpoint against the model: what was loaded is told from what was not, on real models and files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import families
import peft
import pytest
import torch
import transformers as hf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import vlmdoctor
from vlmdoctor.errors import UserError
from vlmdoctor.evidence.checkpoint import Checkpoint
from vlmdoctor.finding import Finding
from vlmdoctor.probes.checkpoint.checkpoint import looks_fresh, probe
from vlmdoctor.subject import Subject

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def found(model: nn.Module, checkpoint: Any, **more: Any) -> list[Finding]:
    report = vlmdoctor.check(model, checkpoint=checkpoint, select=["CKPT", "PARAM303"], **more)
    assert report.crashed == ()
    return list(report.findings)


def names(model: nn.Module, checkpoint: Any, **more: Any) -> list[str]:
    return [finding.rule for finding in found(model, checkpoint, **more)]


def fresh(model: Any, seed: int = 1) -> Any:
    """The same model with other random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return type(model)(model.config)


@pytest.fixture(scope="module")
def llava() -> Any:
    return families.build("llava")[0]


@pytest.fixture(scope="module")
def decoder() -> Any:
    return families.build("llama")[0]


class TestHealthy:
    @pytest.mark.parametrize("family", [*families.DECODERS, *families.VLMS])
    def test_saved_and_loaded_again(self, family: str, tmp_path: Path) -> None:
        model, _ = families.build(family)
        model.save_pretrained(tmp_path)
        loaded = type(model).from_pretrained(tmp_path)
        evidence: Checkpoint = probe(Subject(loaded, checkpoint=tmp_path), lambda _: None)
        assert all(weight.key is not None for weight in evidence.weights)
        assert not [w.name for w in evidence.weights if w.equal is False]
        assert not evidence.unplaced
        assert names(loaded, tmp_path) == []
        assert names(loaded.to(torch.bfloat16), str(tmp_path)) == []

    def test_own_state_dict(self, llava: Any) -> None:
        assert names(llava, llava.state_dict()) == []

    def test_tied_head_is_in_no_file(self, tmp_path: Path) -> None:
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**families.TEXT, tie_word_embeddings=True))
        model.save_pretrained(tmp_path)
        assert names(hf.LlamaForCausalLM.from_pretrained(tmp_path), tmp_path) == []

    def test_names_changed_while_loading(self, llava: Any) -> None:
        renamed = {f"module.wrapped.{name}": tensor for name, tensor in llava.state_dict().items()}
        assert names(llava, renamed) == []

    def test_language_model_gets_eyes(self, llava: Any, decoder: Any) -> None:
        composed = fresh(llava)
        composed.model.language_model.load_state_dict(decoder.model.state_dict())
        composed.lm_head.load_state_dict(decoder.lm_head.state_dict())
        assert names(composed, decoder.state_dict()) == []

    def test_tower_from_a_whole_clip(self, llava: Any) -> None:
        """The text model's tensors belong to nothing here, though some have names like the decoder's."""
        text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        ids = {"vocab_size": 128, "bos_token_id": 1, "eos_token_id": 2}
        clip = hf.CLIPModel(hf.CLIPConfig(vision_config=families.VISION, text_config=text | ids))
        composed = fresh(llava)
        composed.model.vision_tower.load_state_dict(clip.vision_model.state_dict())
        assert names(composed, clip.state_dict()) == []

    def test_resized_table(self, llava: Any) -> None:
        resized = copy.deepcopy(llava)
        resized.resize_token_embeddings(140, mean_resizing=False)
        assert names(resized, llava.state_dict()) == []

    def test_trained_since(self, llava: Any) -> None:
        trained = copy.deepcopy(llava)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for parameter in trained.parameters():
                parameter.add_(0.1 * parameter.abs().mean() * torch.randn_like(parameter))
        assert names(trained, llava.state_dict()) == []

    def test_base_under_adapters(self, llava: Any) -> None:
        config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
        adapted = peft.get_peft_model(copy.deepcopy(llava), config)
        assert names(adapted, llava.state_dict()) == []

    def test_compiled_and_without_weights(self, llava: Any) -> None:
        assert names(torch.compile(copy.deepcopy(llava), backend="eager"), llava.state_dict()) == []
        with torch.device("meta"):
            laid_out = type(llava)(llava.config)
        assert names(laid_out, llava.state_dict()) == []


class TestNotLoaded:
    def test_never_loaded(self, llava: Any, tmp_path: Path) -> None:
        llava.save_pretrained(tmp_path)
        (finding,) = found(fresh(llava), tmp_path)
        assert (finding.rule, finding.severity) == ("checkpoint-not-loaded", "error")
        assert finding.at == ("the whole model (39 tensors)",)

    def test_a_prefix_too_many(self) -> None:
        """As minimind-v did it: strict=False, and nothing matched."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        checkpoint = {f"llm.{name}": torch.randn_like(t) for name, t in model.state_dict().items()}
        model.load_state_dict(checkpoint, strict=False)
        (finding,) = found(model, checkpoint)
        assert finding.rule == "checkpoint-not-loaded"
        assert "'llm.' where the model has '' (4 tensors)" in (finding.cause or "")
        assert finding.fix is not None
        repaired = {"state_dict": checkpoint, "model": model}
        exec("\n".join(finding.fix.commands), repaired)
        assert names(model, checkpoint) == []

    def test_saved_from_ddp(self, llava: Any) -> None:
        """from_pretrained renames much, but does not know DDP's prefix."""
        theirs = {f"module.{name}": tensor for name, tensor in llava.state_dict().items()}
        (finding,) = found(fresh(llava), theirs)
        assert finding.fix is not None and 'removeprefix("module.")' in finding.fix.commands[0]

    def test_projector_under_another_name(self, llava: Any) -> None:
        theirs = {name: t for name, t in llava.state_dict().items() if "projector" not in name}
        for number, layer in ((0, "linear_1"), (2, "linear_2")):
            for kind in ("weight", "bias"):
                tensor = llava.state_dict()[f"model.multi_modal_projector.{layer}.{kind}"]
                theirs[f"model.mm_projector.{number}.{kind}"] = tensor
        assert names(llava, theirs) == []
        half = fresh(llava)
        half.load_state_dict(theirs, strict=False)
        (finding,) = found(half, theirs)
        assert finding.message == "the projector does not have the checkpoint's weights"
        assert "mm_projector.0" in (finding.cause or "")

    def test_projector_initialised_again(self, llava: Any) -> None:
        again = copy.deepcopy(llava)
        again.model.multi_modal_projector = fresh(llava).model.multi_modal_projector
        (finding,) = found(again, llava.state_dict())
        assert finding.message == "the projector does not have the checkpoint's weights"
        assert "the rest was loaded" in (finding.cause or "")

    def test_projector_not_in_the_checkpoint(self, llava: Any) -> None:
        without = {name: t for name, t in llava.state_dict().items() if "projector" not in name}
        assert names(llava, without) == ["checkpoint-part-missing"]

    def test_tower_reloaded_over_the_tuned_one(self, llava: Any) -> None:
        tuned = copy.deepcopy(llava)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for parameter in tuned.model.vision_tower.parameters():
                parameter.add_(0.05 * parameter.abs().mean() * torch.randn_like(parameter))
        assert names(llava, tuned.state_dict()) == ["part-differs-from-checkpoint"]

    def test_another_width(self, decoder: Any) -> None:
        wide = hf.LlamaForCausalLM(hf.LlamaConfig(**families.TEXT | {"hidden_size": 64}))
        (finding,) = found(wide, decoder.state_dict())
        assert (finding.rule, finding.severity) == ("checkpoint-shape-mismatch", "error")

    def test_another_architecture(self, decoder: Any) -> None:
        (finding,) = found(families.build("gpt2")[0], decoder.state_dict())
        assert finding.message == "only 1 of the checkpoint's 21 tensors has a name of this model"


class TestAdapters:
    @pytest.fixture
    def saved(self, llava: Any, tmp_path: Path) -> Path:
        adapted = peft.get_peft_model(copy.deepcopy(llava), peft.LoraConfig(target_modules=["q_proj"]))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter)
        adapted.save_pretrained(tmp_path)
        return tmp_path

    def test_loaded(self, llava: Any, saved: Path) -> None:
        assert names(peft.PeftModel.from_pretrained(copy.deepcopy(llava), saved), saved) == []

    def test_new_ones_instead(self, llava: Any, saved: Path) -> None:
        adapted = peft.get_peft_model(copy.deepcopy(llava), peft.LoraConfig(target_modules=["q_proj"]))
        (finding,) = found(adapted, saved)
        assert finding.severity == "error" and "adapters" in (finding.cause or "")

    def test_none_in_the_model(self, llava: Any, saved: Path) -> None:
        (finding,) = found(llava, saved)
        assert finding.message == "the checkpoint holds only adapters, and the model has none"
        assert finding.severity == "warning"


class Tokenizer:
    """As many tokens as it is told."""

    def __init__(self, size: int) -> None:
        self.size = size

    def get_vocab(self) -> dict[str, int]:
        return {f"t{number}": number for number in range(self.size)}


class TestNewRows:
    def test_frozen_under_adapters(self, decoder: Any) -> None:
        grown = copy.deepcopy(decoder)
        grown.resize_token_embeddings(140, mean_resizing=False)
        adapted = peft.get_peft_model(grown, peft.LoraConfig(target_modules=["q_proj"]))
        (finding,) = found(adapted, decoder.state_dict(), tokenizer=Tokenizer(130))
        assert finding.rule == "new-rows-frozen"
        assert finding.message.startswith("rows of 2 new tokens are frozen")

    @pytest.mark.parametrize(
        "more", [{"trainable_token_indices": [128, 129]}, {"modules_to_save": ["embed_tokens", "lm_head"]}]
    )
    def test_trained(self, decoder: Any, more: dict[str, Any]) -> None:
        grown = copy.deepcopy(decoder)
        grown.resize_token_embeddings(140, mean_resizing=False)
        adapted = peft.get_peft_model(grown, peft.LoraConfig(target_modules=["q_proj"], **more))
        assert names(adapted, decoder.state_dict(), tokenizer=Tokenizer(130)) == []


class TestFiles:
    def test_torch_file_with_other_things_in_it(self, decoder: Any, tmp_path: Path) -> None:
        path = tmp_path / "step.pt"
        torch.save({"model": decoder.state_dict(), "step": 3, "optimizer": {"state": {}}}, path)
        assert names(decoder, path) == []
        assert names(fresh(decoder), path) == ["checkpoint-not-loaded"]

    def test_shards(self, decoder: Any, tmp_path: Path) -> None:
        decoder.save_pretrained(tmp_path, max_shard_size="40KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1
        assert names(decoder, tmp_path) == []
        next(tmp_path.glob("*.safetensors")).unlink()
        with pytest.raises(UserError, match="which is not there"):
            names(decoder, tmp_path)

    def test_cut_short(self, decoder: Any, tmp_path: Path) -> None:
        decoder.save_pretrained(tmp_path)
        path = tmp_path / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(UserError, match="no whole safetensors file"):
            names(decoder, tmp_path)

    def test_code_is_never_run(self, decoder: Any, tmp_path: Path) -> None:
        path = tmp_path / "model.bin"
        torch.save(decoder, path)
        with pytest.raises(UserError, match="code in checkpoints is never run"):
            names(decoder, path)

    @pytest.mark.parametrize(
        ("given", "says"),
        [
            ("nowhere/model.safetensors", "there is no checkpoint"),
            (3, "an object of type int"),
            ({"step": 3}, "holds no tensor"),
        ],
    )
    def test_nonsense(self, decoder: Any, given: Any, says: str) -> None:
        with pytest.raises(UserError, match=says):
            names(decoder, given)

    def test_empty_folder(self, decoder: Any, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="has no safetensors"):
            names(decoder, tmp_path)


@pytest.mark.parametrize(
    ("weight", "fresh_one"),
    [
        (nn.Linear(64, 64).weight, True),
        (nn.Parameter(0.02 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))), True),
        (nn.Parameter(1.3 * nn.Linear(64, 64).weight.detach()), False),
        (nn.Parameter(0.05 * torch.randn(64, 64, generator=torch.Generator().manual_seed(0))), False),
        (nn.Parameter(torch.zeros(64, 64)), None),
        (nn.Parameter(torch.ones(64)), None),
    ],
    ids=["torch", "transformers", "trained", "another deviation", "zeros", "norm"],
)
def test_looks_fresh(weight: nn.Parameter, fresh_one: bool | None) -> None:
    assert looks_fresh(weight) is fresh_one


class TestEveryTensorIsInOneState:
    """Loaded, not loaded, missing or unknown, whatever is renamed or dropped; and the sum is right."""

    @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        renamed=st.sets(st.integers(0, 80)),
        dropped=st.sets(st.integers(0, 80), max_size=12),
        middle=st.booleans(),
    )
    def test_renamed_and_dropped(
        self, llava: Any, others: Any, renamed: set[int], dropped: set[int], middle: bool
    ) -> None:
        saved, model, plain = others
        state = {}
        for number, (name, tensor) in enumerate(saved.state_dict().items()):
            if number not in dropped:
                state[_other_name(name, middle) if number in renamed else name] = tensor
        model.load_state_dict(plain)
        model.load_state_dict(state, strict=False)
        evidence: Checkpoint = probe(Subject(model, checkpoint=state), lambda _: None)
        counts = evidence.counts()
        assert sum(counts.values()) == len(evidence.weights) == len(list(model.parameters()))
        theirs = dict(saved.named_parameters())
        for weight in evidence.weights:
            taken = torch.equal(model.get_parameter(weight.name), theirs[weight.name])
            assert weight.state in (("loaded", "unknown") if taken else ("not_loaded", "missing", "unknown"))
        placed = [key for w in evidence.weights if (key := w.key) is not None]
        assert len({*placed, *evidence.unplaced}) == len(placed) + len(evidence.unplaced) == len(state)
        for finding in found(model, state):
            assert finding.measured.get("all_tensors", counts) == counts

    def test_most_of_a_tower_under_names_that_differ_in_the_middle(self, others: Any) -> None:
        saved, model, plain = others
        vision = [n for n in saved.state_dict() if "vision_tower" in n and "layers" in n and "fc" not in n]
        state = {_other_name(n, True) if n in vision else n: t for n, t in saved.state_dict().items()}
        model.load_state_dict(plain)
        model.load_state_dict(state, strict=False)
        (finding,) = found(model, state)
        assert finding.rule == "checkpoint-part-missing" and "may be meant for" in str(finding.cause)
        assert finding.measured["all_tensors"]["missing"] >= len(
            [n for n in vision if n.endswith("proj.weight")]
        )


def _other_name(name: str, middle: bool) -> str:
    return name.replace(".layers.", ".blocks.sub.") if middle and ".layers." in name else f"net.{name}"


@pytest.fixture(scope="module")
def others(llava: Any) -> Any:
    """(a saved model, one with other values everywhere, the latter's state)."""
    saved, model = copy.deepcopy(llava), fresh(llava)
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return saved, model, copy.deepcopy(model.state_dict())
