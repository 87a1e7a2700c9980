"""How other tools' answers are judged and shown; the tools themselves are not needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from benchmarks.detection.case import Case
from benchmarks.detection.rivals import run, table
from benchmarks.detection.rivals.rival import (
    NAMES,
    Said,
    apart,
    is_right,
    joined,
    loss_of,
    meant_frozen,
    optimizer_of,
    rival,
)
from benchmarks.detection.score import score
from vlmdoctor.rulebook import all_rules
from vlmdoctor.subject import Subject

CUT = Case("E02-features-detached/x", "x", lambda: None, "E02-features-detached", "how", ("no-gradient",))
HEALTHY = Case("vlm/x", "x", lambda: None)


@pytest.mark.parametrize("tool", NAMES)
def test_each_cause_is_a_rule_of_vlmdoctor(tool: str) -> None:
    rules = {rule.name for rule in all_rules()} | {rule.area for rule in all_rules()}
    named = {rule for _, _, names in rival(tool).causes for rule in names.split()}
    assert named <= rules
    assert "==" in rival(tool).requirement


def test_a_message_that_is_passed_on_names_its_own_cause() -> None:
    said = Said("forward", "error", "raised ValueError: Image features and image tokens do not match")
    assert rival("torchtest2").names(said) == ["forward-raises", "image-token-count"]
    said = Said("loss", "error", "step_fn raised IndexError: index out of range in self")
    assert rival("guardtower").names(said) == ["forward-raises", "token-out-of-table"]
    said = Said("loss", "error", "loss does not require grad - it is detached")
    assert rival("guardtower").names(said) == ["no-gradient"]


def test_what_is_said_of_the_healthy_model_too_is_not_counted() -> None:
    answer = {
        "case": "a",
        "seconds": 1.0,
        "said": [["error", "gradient_flow", "2 of 9 tensors"], ["warning", "initial_loss", "much larger"]],
    }
    kept = run._kept("torchtest2", answer, {("warning", "initial_loss", "much larger")})
    assert kept == {"alarms": ["error gradient_flow = no-gradient"], "seconds": 1.0}
    assert run._kept("torchtest2", {"case": "a", "error": "raised"}, set()) == {"error": "raised"}


def test_right_is_what_would_be_right_of_vlmdoctor() -> None:
    assert is_right(CUT, ["initial-loss", "no-gradient"])
    assert not is_right(CUT, ["initial-loss"])
    by_area = Case("f/x", "x", lambda: None, "f", "how", ("PARAM*",))
    assert is_right(by_area, ["PARAM"]) and is_right(by_area, ["frozen-by-mistake"])


def test_tally_counts_the_cases_that_the_tool_was_run_on() -> None:
    other = Case("E02-features-detached/y", "y", lambda: None, "E02-features-detached", "how", CUT.rules)
    alarm = {"alarms": ["error loss = forward-raises"], "seconds": 0.1}
    answers = {CUT.name: {"alarms": ["error gradient_flow = no-gradient"], "seconds": 0.1}, other.name: alarm}
    assert str(table.tally([CUT, other], answers)) == "2 / 1 of 2"
    assert str(table.tally([CUT, other], {other.name: {"error": "it took too long"}})) == "0 / 0 of 1"
    assert str(table.tally([CUT], {})) == "–"


def test_the_page_shows_both_sides_and_what_only_others_name() -> None:
    record: dict[str, dict[str, Any]] = {tool: {} for tool in NAMES}
    assert table.beside(score([CUT], [{"findings": []}]), record) == []
    record["guardtower"] = {
        CUT.name: {"alarms": ["error grad_connectivity = no-gradient"], "seconds": 0.2},
        HEALTHY.name: {"alarms": ["warning dead_relu ="], "seconds": 0.2},
    }
    scored = score([CUT, HEALTHY], [{"findings": [], "seconds": 1.0}, {"findings": [], "seconds": 3.0}])
    page = "\n".join(table.beside(scored, record))
    assert "| planted in | vlmdoctor | guardtower |" in page
    assert "| gradients | 0 / 0 of 1 | 1 / 1 of 1 |" in page
    assert "| healthy: failed / only warned | 0 / 0 of 1 | 0 / 1 of 1 |" in page
    assert "- E02-features-detached/x: guardtower" in page
    assert "trainproof 0.22: it reads the logs" in page


def test_the_record_survives_being_written(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "RECORD", tmp_path / "record.json")
    record = run.read_record()
    assert record == {tool: {} for tool in NAMES}
    record["guardtower"]["vlm/x"] = {"alarms": [], "seconds": 0.1}
    run._write(record)
    assert run.read_record() == record


def test_what_the_tools_are_given() -> None:
    model = nn.ModuleDict({"vision": nn.Linear(2, 2), "projector": nn.Linear(2, 2)})
    batch = {"x": torch.ones(1, 2), "labels": torch.zeros(1)}
    inputs, labels = apart(batch)
    assert set(inputs) == {"x"} and set(joined(inputs, labels)) == set(batch)
    optimizers = [torch.optim.SGD(model.parameters()), torch.optim.SGD(model.parameters())]
    subject = Subject(
        model,
        batch,
        loss_fn=lambda given, whole: given["vision"](whole["x"]).sum(),
        optimizer=optimizers,
        trainable="projector",
    )
    assert meant_frozen(subject) == ["vision.weight", "vision.bias"]
    assert optimizer_of(subject) is optimizers[0]
    assert loss_of(subject).requires_grad
