"""Saved, loaded and stepped: the same step, or what is missing in the state dicts."""

from __future__ import annotations

from typing import Any

import families
import pytest
import torch
import transformers as hf
from torch import nn

import vlmdoctor
from vlmdoctor.report import Report

X = torch.linspace(-1, 1, 32).reshape(8, 4)


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    return model(batch).square().mean()


def examined(model: nn.Module, optimizer: Any, batch: Any = X, **more: Any) -> Report:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = vlmdoctor.check(model, batch, optimizer=optimizer, select=["resume-not-exact"], **more)
    assert report.crashed == ()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    return report


def network(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), *more, nn.Linear(8, 4))


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.01),
        lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
        lambda p: hf.Adafactor(p, scale_parameter=True, relative_step=True, warmup_init=True, lr=None),
    ],
    ids=["sgd", "adamw", "amsgrad", "adafactor"],
)
def test_nothing_is_lost(make: Any) -> None:
    model = network()
    optimizer = make(model.parameters())
    report = examined(model, optimizer, loss_fn=loss_of)
    assert report.findings == () and report.ran == ("resume-not-exact",)


@pytest.mark.parametrize("family", ["llama", "gemma2", "llava", "qwen2_vl"])
def test_families_resume(family: str) -> None:
    model, batch = families.build(family)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = hf.get_cosine_schedule_with_warmup(optimizer, 1, 10)
    report = examined(model, optimizer, batch, lr_scheduler=scheduler)
    assert report.findings == () and report.ran == ("resume-not-exact",)


class Average(nn.Module):
    """Scales by a running average that is kept beside the state dict, or in it."""

    def __init__(self, *, saved: bool) -> None:
        super().__init__()
        if saved:
            self.register_buffer("average", torch.ones(8))
        else:
            self.average = torch.ones(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.average = 0.5 * self.average + 0.5 * x.detach().abs().mean(0)
        return x / self.average


def test_running_average_in_an_attribute() -> None:
    model = network(Average(saved=False))
    (finding,) = examined(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn=loss_of).findings
    assert finding.at == ("3.average",)
    assert finding.cause == "3.average changes in training and is not saved"
    model = network(Average(saved=True))
    assert not examined(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn=loss_of).findings


class Forgetful(torch.optim.SGD):
    """Saves its settings and not its moments."""

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"state": {}}


def test_moments_that_are_not_saved() -> None:
    model = network()
    optimizer = Forgetful(model.parameters(), lr=0.1, momentum=0.9)
    (finding,) = examined(model, optimizer, loss_fn=loss_of).findings
    assert (finding.severity, finding.at) == ("warning", ("optimizer",))
    assert finding.cause == "the optimizer keeps a state for 6 parameters, and for 0 after loading"


class Unsaved(torch.optim.lr_scheduler.LRScheduler):
    """Halves the rate each time, and saves nothing."""

    def get_lr(self) -> list[float]:
        return [group["lr"] / 2 for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base


def test_a_schedule_that_starts_anew() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    (finding,) = examined(model, optimizer, lr_scheduler=Unsaved(optimizer), loss_fn=loss_of).findings
    assert finding.at == ("scheduler",)


class Noise(nn.Module):
    """Draws from a generator of its own that a copy does not share."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rand(8, generator=GENERATOR)


GENERATOR = torch.Generator().manual_seed(0)


def test_steps_that_do_not_repeat_prove_nothing() -> None:
    model = network(Noise())
    report = examined(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn=loss_of)
    assert report.skipped == (("resume-not-exact", "the same step gives different weights each time"),)


class Exchanging(nn.Module):
    """Puts another module in the place of one when it first runs, as BigBird does for short texts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Identity()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.inner, nn.Sequential):
            self.inner = nn.ModuleDict({"0": self.inner[0], "other": nn.Identity()})
        return self.inner["0"](x)


def test_modules_that_are_exchanged_in_forward() -> None:
    model = network(Exchanging())
    report = examined(model, torch.optim.SGD(model.parameters(), lr=0.1), loss_fn=loss_of)
    assert report.findings == () and report.ran == ("resume-not-exact",)


class Routed(nn.Module):
    """Keeps its auxiliary loss, which hangs in the graph of the last pass, as mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.expert = nn.Linear(4, 2), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.router(x).softmax(-1)
        self.auxiliary = weights.square().mean()
        return self.expert(x) * weights[..., :1]


def test_what_modules_keep_of_a_pass_is_copied_without_its_graph() -> None:
    torch.manual_seed(0)
    model = Routed()
    loss_of(model, X)  # it has run before
    held = model.auxiliary
    report = examined(model, torch.optim.AdamW(model.parameters(), lr=0.01), loss_fn=loss_of)
    assert report.findings == () and report.ran == ("resume-not-exact",)
    assert model.auxiliary is held and held.requires_grad
