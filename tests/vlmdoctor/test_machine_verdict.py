"""`check-env` opens with its verdict, which is never better than the findings below it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from test_check_env import check_env

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.reporters.machine_verdict import verdict_of
from vlmdoctor.rules.env._healthy import laptop, workstation

MACHINES = Path(__file__).parent / "machines"


def finding(code: str, severity: Severity = Severity.ERROR, message: str = "it is broken") -> Finding:
    return replace(Finding(message=message, severity=severity), rule="a-rule", code=code)


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ((), "✓ can train on"),
        ((finding("ENV212", Severity.INFO),), "✓ can train on"),
        ((finding("ENV212", Severity.WARNING),), "! can train on"),
        ((finding("ENV101"),), "✗ not ready to train: it is broken"),
        ((finding("ENV601"),), "✗ it is broken; the machine can train on"),
        ((finding("SRC101"),), "✗ it is broken; the machine can train on"),
        (
            (finding("SRC101", message="first"), finding("ENV201", message="second")),
            "✗ not ready to train: second (and 1 more below)",
        ),
    ],
)
def test_the_worst_finding_decides(found: tuple[Finding, ...], line: str) -> None:
    verdict = verdict_of(workstation(), found)
    assert verdict.line.startswith(line)
    assert "\n" not in verdict.line


@pytest.mark.parametrize("machine", [workstation(), laptop(), Environment()], ids=["gpus", "cpu", "empty"])
@pytest.mark.parametrize("code", ["ENV101", "ENV401", "ENV501", "ENV601", "SRC101"])
def test_no_error_goes_with_a_tick(machine: Environment, code: str) -> None:
    assert verdict_of(machine, [finding(code)]).line.startswith("✗")
    assert not verdict_of(machine, [finding(code, Severity.WARNING)]).line.startswith("✓")
    assert not verdict_of(machine, [], "a rule could not run").line.startswith("✓")


def test_what_is_not_known_is_neither() -> None:
    for unseen in ("torch", "gpus"):
        machine = replace(workstation(), unseen={unseen: "the report does not show it"})
        assert verdict_of(machine, ()).line.startswith("? whether")
    hidden = replace(workstation(), unseen={"variables": "the report does not show it"})
    assert "variables that may hide them are not shown" in verdict_of(hidden, ()).line


@pytest.mark.parametrize("machine", sorted(MACHINES.iterdir()), ids=lambda path: path.name)
def test_the_verdict_comes_before_the_machine_and_the_findings(machine: Path) -> None:
    result = check_env("--from", machine)
    verdict, blank, origin, *rest = result.stdout.splitlines()
    assert blank == "" and origin.startswith("Judged from ")
    assert verdict[0] in {0: "✓!?", 1: "✗"}[result.returncode]
    assert rest[0].startswith("[")
    cards = [i for i, line in enumerate(rest) if line.startswith(("✗ error", "! warning"))]
    sections = [i for i, line in enumerate(rest) if line.startswith("[")]
    assert not cards or min(cards) > max(sections)
    if any(rest[i].startswith("! warning") for i in cards):
        assert verdict[0] in "!✗?"


@pytest.mark.parametrize(
    ("options", "found"), [(("--require", "8-gpus"), "8-gpus"), (("examples/hidden_gpu.py",), "CUDA")]
)
def test_a_demand_and_a_script_count(options: tuple[str, ...], found: str) -> None:
    result = check_env(*options)
    assert result.returncode == 1
    first = result.stdout.splitlines()[0]
    assert first.startswith("✗ ") and found in first
