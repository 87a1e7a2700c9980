"""Parameters that are used and not registered, overwritten in forward, or stuck at zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vlmdoctor
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.probes.gradient.weights_in_use import probe
from vlmdoctor.subject import Subject

RULES = (
    "parameters-not-registered",
    "weights-overwritten",
    "zero-weights-block",
    "gradient-zeroed-by-hook",
)


class Model(nn.Module):
    """x -> a hidden layer -> one number; `change` says what is done in between."""

    def __init__(self, change=None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 6)
        self.change = change or (lambda model, x: x)

    def forward(self, x):
        return self.last(torch.tanh(self.change(self, self.first(x)))).pow(2).mean()


def found(model: nn.Module, optimizer=None, **more) -> dict[str, str]:
    """Rules that fired, with what they said."""
    torch.manual_seed(1)
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-3)
    report = vlmdoctor.check(model, (torch.randn(4, 6),), optimizer=optimizer, select=RULES, **more)
    assert not report.to_dict()["crashed"]
    return {f["rule"]: f["message"] for f in report.to_dict()["findings"]}


class Hidden:
    """An object that is no module and holds one."""

    def __init__(self) -> None:
        self.layers = [nn.Linear(6, 6)]


def test_layers_in_a_list_are_named():
    model = Model(lambda self, x: self.extra["a"][0](x))
    model.extra = {"a": [nn.Linear(6, 6)]}
    report = vlmdoctor.check(
        model,
        (torch.randn(4, 6),),
        optimizer=torch.optim.AdamW(model.parameters()),
        select=["parameters-not-registered"],
    )
    (finding,) = report.to_dict()["findings"]
    assert finding["severity"] == "error"
    assert finding["at"] == ["extra['a'][0].weight", "extra['a'][0].bias"]


def test_without_an_optimizer_it_is_a_warning_that_names_what_it_assumes():
    model = Model(lambda self, x: self.extra[0](x))
    model.extra = [nn.Linear(6, 6)]
    report = vlmdoctor.check(model, (torch.randn(4, 6),), select=["parameters-not-registered"])
    (finding,) = report.to_dict()["findings"]
    assert finding["severity"] == "warning"
    assert "assumed" in finding["cause"]


def test_a_layer_made_in_forward_is_told():
    model = Model(lambda self, x: nn.Linear(6, 6)(x))
    assert found(model) == {
        "parameters-not-registered": "the forward pass creates 2 parameters again each time"
    }


def test_parameters_that_an_optimizer_holds_are_left_alone():
    model = Model(lambda self, x: self.extra[0](x))
    model.extra = [nn.Linear(6, 6)]
    held = torch.optim.AdamW([*model.parameters(), *model.extra[0].parameters()])
    assert found(model, held) == {}


def test_a_frozen_teacher_in_a_list_is_left_alone():
    model = Model(lambda self, x: x + self.teacher[0](x))
    model.teacher = [nn.Linear(6, 6).requires_grad_(False)]
    assert found(model) == {}


def test_activations_that_were_told_to_require_gradients_are_no_parameters():
    model = Model(lambda self, x: x.detach().requires_grad_(True))
    assert found(model) == {}


def test_weights_initialised_in_forward_are_overwritten():
    def again(self, x):
        with torch.no_grad():
            nn.init.normal_(self.last.weight)
        return x

    assert found(Model(again)) == {"weights-overwritten": "the forward pass overwrites 1 trainable parameter"}


def test_weights_copied_through_data_are_overwritten():
    stored = torch.randn(6, 6)

    def again(self, x):
        self.last.weight.data.copy_(stored)
        return x

    assert "weights-overwritten" in found(Model(again))


def _clamp(self, x):
    self.last.weight.data.clamp_(-0.1, 0.1)
    return x


def _normalise(self, x):
    with torch.no_grad():
        self.last.weight.div_(self.last.weight.norm())
    return x


def _moving_average(self, x):
    with torch.no_grad():
        self.last.weight.lerp_(self.first.weight, 0.01)
    return x


@pytest.mark.parametrize("change", [_clamp, _normalise, _moving_average])
def test_weights_that_keep_what_training_wrote_are_left_alone(change):
    assert found(Model(change)) == {}


def test_two_layers_of_zeros_are_proven():
    model = Model()
    for parameter in model.parameters():
        parameter.data.zero_()
    model.last.bias.data.fill_(0.1)
    torch.manual_seed(1)
    report = vlmdoctor.check(model, (torch.randn(4, 6),), select=["zero-weights-block"])
    (finding,) = report.to_dict()["findings"]
    assert finding["at"] == ["first.weight", "last.weight"]
    assert finding["proof"]["before"] == "3 parameters have a gradient of exactly zero"
    assert finding["proof"]["after"] == "3 of them have one that is not"


def test_one_layer_that_starts_at_zero_learns():
    model = Model()
    model.last.weight.data.zero_()
    model.last.bias.data.fill_(0.1)
    assert found(model) == {}


def test_a_hook_that_zeroes_is_told_and_one_that_looks_is_not():
    model = Model()
    model.first.weight.register_hook(torch.zeros_like)
    model.last.weight.register_hook(lambda gradient: None)
    assert found(model) == {"gradient-zeroed-by-hook": "a hook sets the gradient of 1 parameter to zero"}


def test_nothing_is_changed_by_looking():
    model = Model(lambda self, x: self.extra[0](x))
    model.extra = [nn.Linear(6, 6)]
    for parameter in model.last.parameters():
        parameter.data.zero_()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    torch.manual_seed(1)
    batch = (torch.randn(4, 6),)
    torch.set_rng_state(state)
    vlmdoctor.check(model, batch, select=RULES)
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in (*model.parameters(), *model.extra[0].parameters()))


def test_weights_of_a_large_model_are_put_back_too(monkeypatch: pytest.MonkeyPatch):
    """Of large models the general net keeps no copy: what a probe writes it has to undo itself."""
    monkeypatch.setattr("vlmdoctor.sandbox.tensors.KEPT_BYTES", 0)
    model = Model(_clamp)
    subject = Subject(model, batch=(torch.randn(4, 6),))
    clamped = model.last.weight.detach().clamp(-0.1, 0.1)
    assert probe(subject, lambda _: Forward(loss=1.0, finite=True)).overwritten == ()
    assert torch.equal(model.last.weight, clamped)  # what the model itself does, and nothing more
