"""The three faults of `examples/` really fail as they say, are found, and their repaired twins are clean."""

from __future__ import annotations

import functools
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from snapshot import matches

import vlmdoctor
from vlmdoctor.reporters import full
from vlmdoctor.targets.resolve import resolve

ROOT = Path(__file__).parents[2]
BAD = {
    "rope_from_hidden_size": "rope-table-dim",
    "frozen_by_mistake": "frozen-by-mistake",
    "hidden_gpu": "gpu-hidden-in-source",
}


@pytest.fixture
def losses_of(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], list[float]]:
    """Runs an example as a script and returns the losses that it prints."""
    # One of them sets it; that these touched it first is what puts it back afterwards.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")

    def run(name: str) -> list[float]:
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
        printed = capsys.readouterr().out
        return [float(x) for x in re.findall(r"^\[Train Epoch 1\] step: \d+, loss: (\S+)$", printed, re.M)]

    return run


@functools.cache
def check(target: str) -> tuple[int, dict[str, Any]]:
    """The status and the JSON report of `vlmdoctor check`."""
    result = subprocess.run(
        [sys.executable, "-m", "vlmdoctor", "check", target, "--output-format", "json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert result.stdout, result.stderr
    return result.returncode, json.loads(result.stdout)


def test_the_rotary_script_fails_with_the_familiar_message(losses_of: Callable[[str], list[float]]) -> None:
    with pytest.raises(RuntimeError) as caught:
        losses_of("rope_from_hidden_size")
    assert str(caught.value) == (
        "The size of tensor a (32) must match the size of tensor b (320) at non-singleton dimension 3"
    )


def test_the_frozen_script_does_not_learn_and_its_twin_does(
    losses_of: Callable[[str], list[float]],
) -> None:
    flat, falling = losses_of("frozen_by_mistake"), losses_of("frozen_by_mistake_fixed")
    assert flat[0] == falling[0]
    assert min(flat) > 0.9 * flat[0]
    assert falling[-1] < 0.3 * falling[0]


@pytest.mark.parametrize("name", ["rope_from_hidden_size_fixed", "hidden_gpu", "hidden_gpu_fixed"])
def test_the_others_train(name: str, losses_of: Callable[[str], list[float]]) -> None:
    losses = losses_of(name)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", sorted(BAD))
def test_the_fault_is_found_and_nothing_else(name: str) -> None:
    status, report = check(f"examples/{name}.py:build")
    assert [finding["rule"] for finding in report["findings"]] == [BAD[name]]
    assert report["findings"][0]["severity"] == "error"
    assert report["crashed"] == []
    assert status == 1


@pytest.mark.parametrize("name", sorted(BAD))
def test_the_repaired_twin_is_clean(name: str) -> None:
    status, report = check(f"examples/{name}_fixed.py:build")
    assert report["findings"] == []
    assert report["crashed"] == []
    assert status == 0


def test_the_rotary_finding_is_located_and_proven() -> None:
    _, report = check("examples/rope_from_hidden_size.py:build")
    (finding,) = report["findings"]
    code = (ROOT / "examples/rope_from_hidden_size.py").read_text().splitlines()[finding["line"] - 1]
    assert code.strip().startswith("cos, sin = rotary_tables(config.hidden_size")
    assert finding["file"] == "examples/rope_from_hidden_size.py"
    assert finding["measured"]["table_width"] == 320
    assert finding["measured"]["query_width"] == finding["threshold"]["table_width"] == 32
    assert re.search(r"the forward runs and the loss is \d\.\d{4}", finding["proof"]["after"])
    assert finding["symptoms"] and "must match the size of tensor b (320)" in finding["symptoms"][0]


def test_the_frozen_finding_names_the_modules() -> None:
    _, report = check("examples/frozen_by_mistake.py:build")
    places = " ".join(report["findings"][0]["at"])
    assert all(name in places for name in ("vision_proj", "lm (", "lm_head"))


def test_the_report_of_the_rotary_script_looks_like_this(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    target = resolve("examples/rope_from_hidden_size.py:build")
    report = vlmdoctor.check(target.subject, select=["ROPE", "CFG"])
    text = full.render(report, color=False, verbose=False, quiet=True, width=100)
    # The last digits of a loss are the machine's own.
    assert matches("check_rope_from_hidden_size", re.sub(r"\b(\d\.\d)\d{3}\b", r"\1…", text))
