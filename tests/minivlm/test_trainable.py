"""What learns: policies, patterns, learning rates, weight decay and adapters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runs import SMALL, Recorder, small

from minivlm.errors import UserError
from minivlm.evaluate import undisturbed
from minivlm.factory import build, load
from minivlm.train import train
from minivlm.train_config import POLICIES, TrainConfig
from minivlm.trainable import parameter_groups, parts, patterns_of, set_trainable


@pytest.fixture
def model() -> torch.nn.Module:
    return build("tiny", dict(item.split("=") for item in SMALL), seed=0)[0]


@pytest.mark.parametrize(
    ("policy", "learning"),
    [
        ("all", {"vision_encoder", "vision_proj", "language_model"}),
        ("frozen-vision", {"vision_proj", "language_model"}),
        ("projector", {"vision_proj"}),
        ("vision", {"vision_encoder"}),
        ("language", {"language_model"}),
        ("*vision_proj*, *layers.0.mlp*", {"vision_proj", "language_model", "vision_encoder"}),
    ],
)
def test_policies_and_patterns(model: torch.nn.Module, policy: str, learning: set[str]) -> None:
    set_trainable(model, patterns_of(policy, model))
    found = {part.name: part for part in parts(model)}
    assert {name for name, part in found.items() if part.trainable} == learning
    assert sum(part.total for part in found.values()) == sum(p.numel() for p in model.parameters())
    labels = {part.label for part in found.values()}
    assert labels <= (
        {"[trainable]", "[frozen]"} if policy in POLICIES else {"[trainable]", "[partly trainable]"}
    )


def test_unknown_policies_and_empty_patterns_are_refused(model: torch.nn.Module) -> None:
    with pytest.raises(UserError, match="did you mean 'projector'"):
        patterns_of("projektor", model)
    with pytest.raises(UserError, match=r"the pattern '\*vision_projector\*', which matches no parameter"):
        patterns_of("*vision_projector*", model)


def test_every_part_has_its_own_learning_rate_and_only_matrices_decay(model: torch.nn.Module) -> None:
    config = TrainConfig(lr=1e-3, lr_vision=1e-4, lr_projector=2e-4, weight_decay=0.1).resolved()
    rates, decays = {}, {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in parameter_groups(model, config):
        for parameter in group["params"]:
            rates[names.pop(id(parameter))] = group["lr"]
            decays[id(parameter)] = group["weight_decay"]
    assert not names
    expected = {"vision_encoder": 1e-4, "vision_proj": 2e-4, "language_model": 1e-3}
    assert all(rate == expected[name.split(".")[1]] for name, rate in rates.items())
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim >= 2 and not any(word in name for word in ("embed", "norm"))
        assert (decays[id(parameter)] > 0) is is_matrix, name


def test_what_is_frozen_does_not_move(tmp_path: Path) -> None:
    before = build("tiny", dict(item.split("=") for item in SMALL), seed=0)[0].state_dict()
    recorder = Recorder()
    train(small(tmp_path, stage="align", steps=2), [recorder])
    assert recorder.run.trainable_patterns == ("*vision_proj.*",)
    moved = {
        name.split(".")[1]
        for name, value in recorder.run.model.state_dict().items()
        if not value.equal(before[name])
    }
    assert moved == {"vision_proj"}
    assert recorder.losses[1] != recorder.losses[0]


def test_adapters_learn_and_the_checkpoint_has_them_merged(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    recorder = Recorder()
    summary = train(small(tmp_path, lora_rank=2, trainable="projector", steps=4), [recorder])
    learning = {name for name, p in recorder.run.model.named_parameters() if p.requires_grad}
    assert learning and all("lora_" in name or "vision_proj" in name for name in learning)
    assert 0 < summary.trainable_parameters < summary.parameters

    adapted = recorder.run.model
    merged, processor = load(tmp_path / "checkpoint")
    inputs = processor.ask("what is this?")
    with undisturbed(adapted), torch.no_grad():
        torch.testing.assert_close(
            adapted(**inputs).logits, merged.eval()(**inputs).logits, rtol=1e-4, atol=1e-5
        )
    names = json.loads((tmp_path / "checkpoint" / "manifest.json").read_text())
    assert {"model.safetensors", "config.json", "training_state.pt"} <= set(names)


def test_adapters_without_peft_name_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(UserError, match=r"pip install 'vlmdoctor\[lora\]'"):
        train(small(tmp_path, lora_rank=2))
