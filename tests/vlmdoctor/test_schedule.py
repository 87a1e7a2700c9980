"""The learning rate over the whole run, for the schedules of torch and transformers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.optim import lr_scheduler as torch_schedules

import vlmdoctor
from vlmdoctor.finding import Finding
from vlmdoctor.probes.optimizer.schedule import simulate

Make = Callable[[torch.optim.Optimizer], Any]


def found(make: Make, steps: int = 1000, lr: float = 1e-3, **arguments: Any) -> list[Finding]:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    scheduler = make(optimizer)
    before = copy.deepcopy((optimizer.state_dict(), scheduler.last_epoch))
    report = vlmdoctor.check(
        model,
        optimizer=optimizer,
        lr_scheduler=scheduler,
        training_args={"max_steps": steps, **arguments},
        select=["OPT3"],
    )
    assert report.crashed == ()
    assert (optimizer.state_dict(), scheduler.last_epoch) == before
    return list(report.findings)


HEALTHY: dict[str, Make] = {
    "cosine": lambda o: hf.get_cosine_schedule_with_warmup(o, 30, 1000),
    "linear": lambda o: hf.get_linear_schedule_with_warmup(o, 30, 1000),
    "constant": hf.get_constant_schedule,
    "constant with warm-up": lambda o: hf.get_constant_schedule_with_warmup(o, 30),
    "polynomial": lambda o: hf.get_polynomial_decay_schedule_with_warmup(o, 30, 1000),
    "inverse root": lambda o: hf.get_inverse_sqrt_schedule(o, 30),
    "warm-up, stable, decay": lambda o: hf.get_wsd_schedule(o, 30, 200, num_training_steps=1000),
    "lowest rate": lambda o: hf.get_cosine_with_min_lr_schedule_with_warmup(o, 30, 1000, min_lr=1e-5),
    "hard restarts": lambda o: hf.get_cosine_with_hard_restarts_schedule_with_warmup(o, 30, 1000, 4),
    "torch cosine": lambda o: torch_schedules.CosineAnnealingLR(o, 1000),
    "torch restarts": lambda o: torch_schedules.CosineAnnealingWarmRestarts(o, 250),
    "torch steps": lambda o: torch_schedules.StepLR(o, 300),
    "torch exponential": lambda o: torch_schedules.ExponentialLR(o, 0.99),
    "torch one cycle": lambda o: torch_schedules.OneCycleLR(o, 1e-3, total_steps=1000),
    "torch cyclic": lambda o: torch_schedules.CyclicLR(o, 1e-5, 1e-3, cycle_momentum=False),
    "torch sequence": lambda o: torch_schedules.SequentialLR(
        o,
        [torch_schedules.LinearLR(o, 1e-3, 1, 30), torch_schedules.CosineAnnealingLR(o, 970)],
        [30],
    ),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy(name: str) -> None:
    assert found(HEALTHY[name]) == []


def test_a_run_of_three_steps() -> None:
    assert found(lambda o: hf.get_cosine_schedule_with_warmup(o, 0, 3), steps=3) == []


def test_resumed_in_the_middle() -> None:
    def make(optimizer: torch.optim.Optimizer) -> Any:
        scheduler = hf.get_linear_schedule_with_warmup(optimizer, 30, 1000)
        scheduler.load_state_dict(scheduler.state_dict() | {"last_epoch": 600})
        return scheduler

    assert found(make) == []


FAULTS: dict[str, tuple[str, Make, dict[str, Any], str]] = {
    "made for one process of four": (
        "lr-ends-early",
        lambda o: hf.get_linear_schedule_with_warmup(o, 30, 250),
        {"world_size": 4},
        "1/4 of the steps: as many times fewer as there are processes",
    ),
    "made for one micro-batch of eight": (
        "lr-ends-early",
        lambda o: hf.get_linear_schedule_with_warmup(o, 30, 125),
        {"gradient_accumulation_steps": 8},
        "1/8 of the steps: as many times fewer as there are accumulated batches",
    ),
    "below zero": (
        "lr-ends-early",
        lambda o: torch_schedules.LambdaLR(o, lambda s: 1 - s / 500),
        {},
        "about 501 steps",
    ),
    "whole numbers": (
        "lr-ends-early",
        lambda o: torch_schedules.LambdaLR(o, lambda s: s // 1000),
        {},
        "is 0",
    ),
    "one cycle of half the run": (
        "lr-ends-early",
        lambda o: torch_schedules.OneCycleLR(o, 1e-3, total_steps=500),
        {},
        "raises after them",
    ),
    "cosine past its end": (
        "lr-rises-again",
        lambda o: hf.get_cosine_schedule_with_warmup(o, 0, 500),
        {},
        "ends at about step 500",
    ),
    "warm-up in micro-batches": (
        "warmup-never-ends",
        lambda o: hf.get_cosine_schedule_with_warmup(o, 4000, 100_000),
        {},
        "counted for more steps",
    ),
    "warm-up of a constant schedule": (
        "warmup-ignored",
        hf.get_constant_schedule,
        {"lr_scheduler_type": "constant", "warmup_steps": 30},
        "ignores warm-up steps",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str) -> None:
    rule, make, arguments, cause = FAULTS[name]
    (finding,) = found(make, **arguments)
    assert finding.rule == rule
    assert cause in (finding.cause or "")


def test_prepared_by_accelerate() -> None:
    """It steps a prepared scheduler once for each of the four processes."""

    class AcceleratedScheduler:
        def __init__(self, scheduler: Any) -> None:
            self.scheduler, self.split_batches = scheduler, False
            self.last_epoch = scheduler.last_epoch

    def make(steps: int) -> Make:
        return lambda o: AcceleratedScheduler(hf.get_linear_schedule_with_warmup(o, 30, steps))

    (finding,) = found(make(1000), world_size=4)
    assert "accelerate steps it 4 times" in (finding.cause or "")
    assert found(make(4000), world_size=4) == []


def test_without_a_length_it_is_skipped() -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    scheduler = torch_schedules.StepLR(optimizer, 3)
    report = vlmdoctor.check(
        model, optimizer=optimizer, lr_scheduler=scheduler, training_args={}, select=["OPT301"]
    )
    assert report.skipped == (
        ("lr-ends-early", "the length of the run is not known (training_args: max_steps)"),
    )


def test_a_million_steps_are_sampled() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    curve, raises = simulate(hf.get_linear_schedule_with_warmup(optimizer, 0, 10**6), 0, 10**6, 1)
    assert raises is None and len(curve) <= 2001
    assert curve[0] == (0, 1.0) and curve[-1] == (999_999, pytest.approx(1e-6))


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 60), st.sampled_from(["cosine", "steps", "sequence"]))
def test_simulated_as_it_is_stepped(steps: int, kind: str) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    make = {
        "cosine": lambda: hf.get_cosine_schedule_with_warmup(optimizer, 3, 40),
        "steps": lambda: torch_schedules.StepLR(optimizer, 7),
        "sequence": lambda: torch_schedules.SequentialLR(
            optimizer,
            [
                torch_schedules.LinearLR(optimizer, 0.1, 1, 5),
                torch_schedules.CosineAnnealingLR(optimizer, 40),
            ],
            [5],
        ),
    }
    scheduler = make[kind]()
    curve, _ = simulate(scheduler, 0, steps, 1)
    for step, rate in curve:
        assert (step, rate) == (step, pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-12))
        optimizer.step()
        scheduler.step()


class TestTrainingArguments:
    def test_of_transformers(self, tmp_path: Path) -> None:
        arguments = hf.TrainingArguments(
            str(tmp_path), max_steps=100, lr_scheduler_type="constant", warmup_steps=10, report_to=[]
        )
        report = vlmdoctor.check(nn.Linear(4, 4), training_args=arguments, select=["OPT304"])
        assert [finding.rule for finding in report.findings] == ["warmup-ignored"]

    def test_epochs(self) -> None:
        model = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        scheduler = hf.get_linear_schedule_with_warmup(optimizer, 0, 50)
        report = vlmdoctor.check(
            model,
            optimizer=optimizer,
            lr_scheduler=scheduler,
            train_dataset=[0] * 800,
            training_args={"num_train_epochs": 4, "per_device_train_batch_size": 8, "world_size": 2},
            select=["OPT301"],
        )
        assert report.findings[0].message == "the learning rate is 0 from step 50 of 200: 75% of the run"

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_weights_that_a_scaler_refuses(self, dtype: torch.dtype) -> None:
        report = vlmdoctor.check(nn.Linear(4, 4).to(dtype), training_args={"fp16": True}, select=["OPT305"])
        wanted = ["half-precision-weights"] if dtype is torch.float16 else []
        assert [finding.rule for finding in report.findings] == wanted
