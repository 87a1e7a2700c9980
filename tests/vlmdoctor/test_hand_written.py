"""Models without a configuration get the same rules: each of four faults alone and all together."""

from __future__ import annotations

import pytest
import torch
from hand_written_models import (
    FAULTS,
    IMAGE,
    LABELS,
    MODELS,
    PROJECTORS,
    RULES,
    WITH_PLACEHOLDERS,
    as_trained,
    scattered,
)
from torch import nn

import vlmdoctor
from vlmdoctor.report import Report


def examined(name: str, *faults: str, **options) -> Report:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        subject = MODELS[name](faults)
    report = vlmdoctor.check(subject, **options)
    assert report.crashed == ()
    return report


def planted(name: str) -> list[str]:
    """The faults that can be planted in it: without placeholders their labels can't be supervised."""
    return [fault for fault in FAULTS if fault != LABELS or name in WITH_PLACEHOLDERS]


@pytest.mark.parametrize("name", MODELS)
def test_healthy_ones_give_nothing(name: str) -> None:
    report = examined(name)
    assert report.findings == ()
    assert set(RULES.values()) - {"image-tokens-supervised"} <= set(report.ran)


@pytest.mark.parametrize(("name", "fault"), [(name, fault) for name in MODELS for fault in planted(name)])
def test_each_fault_alone(name: str, fault: str) -> None:
    assert [finding.rule for finding in examined(name, fault).findings] == [RULES[fault]]


@pytest.mark.parametrize("name", MODELS)
def test_all_faults_together(name: str) -> None:
    found = {finding.rule for finding in examined(name, *planted(name)).findings}
    assert found == {RULES[fault] for fault in planted(name)}


def test_the_causes_name_what_is_wrong() -> None:
    causes = {finding.rule: finding for finding in examined("scattered", *FAULTS).findings}
    assert "labels are the ids themselves" in causes["image-tokens-supervised"].cause
    assert "vision.1" in causes["pixel-range"].message
    assert "pretrained weights were not loaded" in causes["frozen-untrained"].cause
    assert causes["frozen-untrained"].fix.commands[0] == "model.vision.load_state_dict(pretrained)"
    assert "0.03" in causes["learning-rate-high"].message


@pytest.mark.parametrize("name", MODELS)
def test_the_projector_is_what_stands_between(name: str) -> None:
    parts = examined(name, depth="forward").facts["parts"]
    names = {part: words.removesuffix(" (measured)") for part, words in parts.items()}
    contract = examined(name, depth="forward").facts["contract"]["seen"]
    if name != "with_clip":  # whose bridge says it by its name
        assert names["projector"] == PROJECTORS[name]
    assert contract["vision"] == "frozen"
    assert contract["projector"].startswith("train")
    assert contract["language"].startswith("train")


@pytest.mark.parametrize("name", WITH_PLACEHOLDERS)
def test_the_image_token_stands_where_features_land(name: str) -> None:
    assert examined(name, depth="forward").facts["parts"]["image_token_id"] == f"{IMAGE} (measured)"


def test_a_model_without_placeholders_has_no_image_token() -> None:
    assert "image_token_id" not in examined("prepended", depth="forward").facts["parts"]
    assert "image_token_id" not in examined("cross_attending", depth="forward").facts["parts"]


@pytest.mark.parametrize("name", MODELS)
def test_rules_that_need_only_rows_run(name: str) -> None:
    report = examined(name, depth="forward")
    assert {"token-out-of-table", "label-out-of-range"} <= set(report.ran)
    assert ("image-token-count" in report.ran) == (name in WITH_PLACEHOLDERS)


def test_nothing_is_run_for_a_static_check() -> None:
    assert "parts" not in examined("scattered", depth="static").facts


def test_a_bound_is_left_after_a_few_steps() -> None:
    """What was trained, however shortly, and then frozen is no fresh initialisation."""
    torch.manual_seed(0)
    subject = scattered(["random frozen vision"])
    tower = subject.model.vision.requires_grad_(True)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-3)
    for _ in range(50):
        optimizer.zero_grad()
        subject.model(**subject.batch)[1].backward()
        optimizer.step()
    tower.requires_grad_(False)
    assert vlmdoctor.check(subject, depth="static").findings == ()


@pytest.mark.parametrize("initialise", [nn.init.xavier_uniform_, nn.init.kaiming_uniform_])
def test_other_even_initialisations(initialise) -> None:
    torch.manual_seed(0)
    subject = scattered()
    initialise(subject.model.vision[1].weight)
    nn.init.zeros_(subject.model.vision[1].bias)
    found = vlmdoctor.check(subject, depth="static").findings
    assert [finding.rule for finding in found] == ["frozen-untrained"]


def test_normal_values_alone_say_nothing() -> None:
    torch.manual_seed(0)
    subject = scattered()
    nn.init.normal_(subject.model.vision[1].weight, std=0.02)
    nn.init.zeros_(subject.model.vision[1].bias)
    assert vlmdoctor.check(subject, depth="static").findings == ()


def test_a_random_tower_that_learns_is_none() -> None:
    torch.manual_seed(0)
    subject = scattered(["random frozen vision"])
    subject.model.vision.requires_grad_(True)
    subject.optimizer = torch.optim.AdamW(subject.model.parameters(), lr=1e-3)
    assert vlmdoctor.check(subject, depth="static").findings == ()


class Dividing(nn.Module):
    """Takes pixels from 0 to 255 and divides them itself."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids, pixel_values, labels=None):
        return self.inner(input_ids, (pixel_values / 255 - 0.5) / 0.25, labels)


def test_a_model_that_divides_itself_may_be_given_bytes() -> None:
    torch.manual_seed(0)
    subject = scattered(["pixels times 255"])
    subject.model = Dividing(subject.model)
    assert vlmdoctor.check(subject).findings == ()


def test_weights_and_modes_are_as_before() -> None:
    torch.manual_seed(0)
    subject = scattered(FAULTS)
    subject.model.train()
    before = {name: tensor.clone() for name, tensor in subject.model.state_dict().items()}
    state = torch.get_rng_state()
    vlmdoctor.check(subject)
    assert all(torch.equal(before[name], tensor) for name, tensor in subject.model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert subject.model.training
    assert not any(module._forward_hooks for module in subject.model.modules())


def test_as_trained_leaves_no_bound() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 32)
    as_trained(layer)
    assert float(layer.weight.detach().abs().max()) > 1 / 8
