"""`vlmdoctor.check` and `vlmdoctor check`: what they say, what they refuse, and that they leave no trace."""

from __future__ import annotations

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import vlmdoctor
from vlmdoctor.errors import FindingsError, UserError

ROOT = Path(__file__).parents[2]


class Restless(nn.Module):
    """A small VLM that does everything to itself that a model can do in a forward pass."""

    def __init__(self, raises: str = "") -> None:
        super().__init__()
        self.raises = raises
        self.vision_encoder = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8), nn.GELU())
        self.vision_proj = nn.utils.spectral_norm(nn.Linear(8, 16))
        self.embed = nn.Embedding(40, 16, max_norm=0.5)
        self.lm = nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.3), nn.LayerNorm(16))
        self.lm_head = nn.Linear(16, 40)
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))
        self.plain = torch.zeros(3)
        self.history: list[float] = []
        self.cache: torch.Tensor | None = None

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor, labels: torch.Tensor) -> Any:
        self.seen += 1
        self.plain.add_(torch.rand(3))
        self.history.append(random.random() + float(numpy.random.rand()))
        self.cache = torch.rand(2)
        self.extra = "new"
        self.lm[1].train()
        with torch.no_grad():
            self.lm_head.bias.add_(1.0)
        labels[:, 0] = -100
        features = self.vision_proj(self.vision_encoder(pixel_values).flatten(2).transpose(1, 2))
        if self.raises == "forward":
            raise RuntimeError("no such thing")
        x = torch.cat([features, self.embed(input_ids)], dim=1)
        logits = self.lm_head(self.lm(x))[:, features.shape[1] :]
        if self.raises == "backward":
            logits = Explodes.apply(logits)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}


class Explodes(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the backward pass fails")


def restless(raises: str = "") -> tuple[nn.Module, dict[str, torch.Tensor], torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Restless(raises)
    batch = {
        "input_ids": torch.randint(0, 40, (2, 6)),
        "pixel_values": torch.rand(2, 3, 8, 8),
        "labels": torch.randint(0, 40, (2, 6)),
    }
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(**copy.deepcopy(batch))["loss"].backward() if not raises else None
    if not raises:
        optimizer.step()  # so that there are optimizer states and gradients to preserve
    model.lm[1].eval()
    model.lm.register_forward_hook(lambda *_: None)
    return model, batch, optimizer


def everything(model: nn.Module, batch: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """All state that a check could touch, as a deep copy."""
    modules = dict(model.named_modules())
    return copy.deepcopy(
        {
            "parameters": {n: p.detach().numpy().tobytes() for n, p in model.named_parameters()},
            "buffers": {n: b.numpy().tobytes() for n, b in model.named_buffers()},
            "gradients": {
                n: None if p.grad is None else p.grad.numpy().tobytes() for n, p in model.named_parameters()
            },
            "requires_grad": {n: p.requires_grad for n, p in model.named_parameters()},
            "modes": {n: m.training for n, m in modules.items()},
            "hooks": {
                n: [len(v) for k, v in vars(m).items() if "hooks" in k and hasattr(v, "__len__")]
                for n, m in modules.items()
            },
            "attributes": {n: sorted(vars(m)) for n, m in modules.items()},
            "plain": [model.plain.numpy().tobytes(), list(model.history), str(model.cache)],
            "batch": {k: v.numpy().tobytes() for k, v in batch.items()},
            "optimizer": str(optimizer.state_dict()),
            "torch": torch.get_rng_state().numpy().tobytes(),
            "python": random.getstate(),
            "numpy": str(numpy.random.get_state()),
            "modes of torch": (torch.is_grad_enabled(), torch.get_default_dtype()),
        }
    )


@pytest.mark.parametrize("raises", ["", "forward", "backward"])
@pytest.mark.parametrize("depth", ["forward", "backward", "steps"])
def test_check_leaves_no_trace(raises: str, depth: str) -> None:
    model, batch, optimizer = restless(raises)
    identities = [id(p) for p in model.parameters()], [id(p.grad) for p in model.parameters()]
    before = everything(model, batch, optimizer)
    report = vlmdoctor.check(model, batch, optimizer=optimizer, depth=depth)
    after = everything(model, batch, optimizer)
    for what in before:
        assert before[what] == after[what], what
    assert identities == ([id(p) for p in model.parameters()], [id(p.grad) for p in model.parameters()])
    assert report.crashed == ()
    if raises and depth != "forward":
        assert f"{raises}-raises" in [finding.rule for finding in report.findings]


def test_the_next_step_is_the_same_with_and_without_a_check() -> None:
    outcomes = []
    for checked in (False, True):
        model, batch, optimizer = restless()
        if checked:
            vlmdoctor.check(model, batch, optimizer=optimizer)
        loss = model(**batch)["loss"]
        loss.backward()
        optimizer.step()
        outcomes.append((loss.item(), [p.detach().numpy().tobytes() for p in model.parameters()]))
    assert outcomes[0] == outcomes[1]


def test_a_report_in_python() -> None:
    model = nn.Linear(4, 2)
    report = vlmdoctor.check(model, (torch.ones(1, 5),))
    assert [finding.rule for finding in report.findings] == ["forward-raises"]
    with pytest.raises(FindingsError, match="forward-raises CFG101"):
        report.raise_for_findings()
    assert "<section" in report._repr_html_()


def test_without_a_batch_only_what_needs_none_runs() -> None:
    report = vlmdoctor.check(nn.Linear(4, 2))
    assert report.ran
    assert dict(report.skipped)["forward-raises"] == "no batch was given"


def test_depth_limits_the_probes() -> None:
    report = vlmdoctor.check(nn.Linear(4, 2), (torch.ones(1, 4),), depth="static")
    assert "--depth forward" in dict(report.skipped)["forward-raises"]


def test_the_budget_stops_further_probes() -> None:
    report = vlmdoctor.check(nn.Linear(4, 2), (torch.ones(1, 4),), budget=0)
    assert dict(report.skipped)["forward-raises"] == "the budget of 0 s was used up"
    assert report.verdict == "incomplete"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: vlmdoctor.check(3), "is an object of type int, not a torch module"),
        (lambda: vlmdoctor.check(nn.Linear(2, 2), {}), "the batch for Linear is empty"),
        (lambda: vlmdoctor.check(nn.Linear(2, 2), {"x": torch.ones(1)}), "does not fit Linear.forward"),
        (lambda: vlmdoctor.check(nn.Linear(2, 2), optimizer="adam"), "without param_groups"),
        (lambda: vlmdoctor.check(nn.Linear(2, 2), depth="deep"), "there is no depth 'deep'"),
        (lambda: vlmdoctor.check(nn.Linear(2, 2), fail_on="info"), "fail_on can't be 'info'"),
        (
            lambda: vlmdoctor.check(nn.Linear(2, 2), select=["rope-tabel-dim"]),
            "did you mean 'rope-table-dim'",
        ),
    ],
)
def test_nonsense_is_one_sentence(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vlmdoctor", "check", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONPATH": str(ROOT)},
        timeout=120,
    )


SCRIPT = """
import torch
print("this goes to standard error")

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_encoder = torch.nn.Linear(8, 16)
        self.lm_head = torch.nn.Linear(32, 4)

    def forward(self, pixel_values):
        print("and this")
        return self.lm_head(self.vision_encoder(pixel_values)).mean()

def build():
    torch.manual_seed(0)
    return Model(), {"pixel_values": torch.ones(2, 8)}

def broken():
    raise ValueError("no data")
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(SCRIPT)
    return tmp_path


def test_the_command_prints_the_report_and_nothing_else(folder: Path) -> None:
    result = run("model.py:build", "--select", "CFG101", cwd=folder)
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert lines[:-1] == [
        "✗ error   the forward pass raises RuntimeError: mat1 and mat2 shapes cannot    "
        "forward-raises CFG101",
        "          be multiplied (2x16 and 32x4)",
        "  at      model.py:13  return self.lm_head(self.vision_encoder(pixel_values)).mean()  in lm_head",
        "          (Linear)",
        "  cause   raised in forward: return self.lm_head(self.vision_encoder(pixel_values)).mean()",
        "  more    vlmdoctor rule CFG101",
        "",
    ]
    assert lines[-1].startswith("✗ 1 error, 0 warnings · 1 check · ")
    assert "this goes to standard error" in result.stderr and "and this" in result.stderr


def test_json_has_the_keys_of_the_contract(folder: Path) -> None:
    report = json.loads(run("model.py:build", "--output-format", "json", cwd=folder).stdout)
    assert set(report) >= {
        "schema_version", "tool", "command", "target", "verdict", "findings", "ran", "skipped", "crashed",
        "facts", "seconds",
    }  # fmt: skip
    assert set(report["findings"][0]) >= {
        "rule", "code", "severity", "message", "at", "file", "line", "measured", "threshold", "cause",
        "certainty", "proof", "fix", "links",
    }  # fmt: skip
    assert (report["command"], report["target"], report["verdict"]) == ("check", "model.py:build", "fail")
    assert report["facts"]["model"] == "Model"
    assert report["facts"]["parameters"] == 276


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model.py:broken"], "broken() of model.py raised ValueError: no data (model.py:20)."),
        (["model.py:nothing"], "has no 'nothing'"),
        (["model.py:build", "--device", "no-such-device"], "--device no-such-device can't be used here"),
        (["model.py:build", "--depth", "deep"], "there is no depth 'deep'"),
        (["model.py:build", "--output-format", "xml"], "there is no output format 'xml'"),
    ],
)
def test_bad_usage_is_one_sentence_and_status_2(folder: Path, arguments: list[str], words: str) -> None:
    result = run(*arguments, cwd=folder)
    assert result.returncode == 2
    assert result.stdout == ""
    told = [line for line in result.stderr.splitlines() if line.startswith("vlmdoctor: ")]
    assert len(told) == 1 and words in told[0]
    assert "Traceback" not in result.stderr


def test_verbose_shows_the_users_own_traceback(folder: Path) -> None:
    result = run("model.py:broken", "-v", cwd=folder)
    assert result.returncode == 2
    assert 'raise ValueError("no data")' in result.stderr
