"""No finding at all on healthy models of many families, and not a bit of them changed."""

from __future__ import annotations

import peft
import pytest
import torch
from families import DECODERS, VLMS, build

import vlmdoctor


@pytest.mark.parametrize("family", [*DECODERS, *VLMS])
def test_nothing_is_found(family: str) -> None:
    model, batch = build(family)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = vlmdoctor.check(model, batch, optimizer=optimizer)
    assert report.findings == ()
    assert report.crashed == ()
    assert {"forward-raises", "backward-raises", "rope-table-dim"} <= set(report.ran)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_frozen_tower_is_a_plan(family: str) -> None:
    model, batch = build(family)
    tower = model.model.vision_tower if family == "llava" else model.model.visual
    tower.requires_grad_(False)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    report = vlmdoctor.check(model, batch, optimizer=torch.optim.AdamW(trainable, lr=1e-3))
    assert report.findings == ()
    assert report.crashed == ()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_lora_everywhere_is_a_plan_too() -> None:
    """Adapters also land on LLaVA's last vision layer, which its features do not come from."""
    model, batch = build("llava")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))
    trainable = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
    report = vlmdoctor.check(adapted, batch, optimizer=torch.optim.AdamW(trainable, lr=1e-3))
    assert report.findings == ()
    assert report.crashed == ()


def test_a_compiled_model_under_its_own_names() -> None:
    model, batch = build("llama")
    compiled = torch.compile(model, backend="eager")
    report = vlmdoctor.check(compiled, batch, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3))
    assert report.findings == ()
    assert report.crashed == ()


def test_gradient_checkpointing() -> None:
    model, batch = build("llava")
    model.train()
    model.activation_checkpointing_enable()
    report = vlmdoctor.check(model, batch, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3))
    assert report.findings == ()
    assert report.crashed == ()
