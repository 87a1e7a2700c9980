"""The dry run of what is the user's own: a contract, a LightningModule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import families
import pytest

from vlmdoctor.dryrun.command import DryRunOptions, dry_run
from vlmdoctor.examine import model_rules
from vlmdoctor.report import Report


def check(target: str, **options: Any) -> Report:
    return dry_run(
        target,
        DryRunOptions(**options),
        rules=model_rules(),
        trust_remote_code=False,
        fail_on="error",
        progress=lambda _: None,
    )


@pytest.fixture
def llava(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A tiny LLaVA's config.json in the folder where vlmdoctor is called."""
    model, _ = families.build("llava")
    values = {**model.config.to_dict(), "architectures": ["LlavaForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(values), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return str(tmp_path)


def agree(folder: Path, *terms: str) -> None:
    (folder / "pyproject.toml").write_text("\n".join(("[tool.vlmdoctor.contract]", *terms)), encoding="utf-8")


def learning(report: Report) -> dict[str, int]:
    return {part["role"]: part["trainable"] for part in report.facts["dry_run"]["parts"]}


def test_what_the_contract_freezes_does_not_learn(tmp_path: Path, llava: str) -> None:
    agree(tmp_path, 'vision = "frozen"', 'projector = "train, lr 0.001"', 'language = "train"')
    agreed = check(llava)
    (tmp_path / "pyproject.toml").unlink()
    asked = check(llava, freeze="vision")
    assert learning(agreed)["vision"] == 0 and learning(agreed)["language"] > 0
    assert agreed.facts["dry_run"]["cost"]["bytes"] == asked.facts["dry_run"]["cost"]["bytes"]
    assert agreed.facts["dry_run"]["frozen_by_contract"] == ["vision"]
    assert "frozen_by_contract" not in asked.facts["dry_run"]
    assert [f.rule for f in agreed.findings] == [f.rule for f in asked.findings] == []


@pytest.mark.parametrize("options", [{"freeze": "language"}, {"lora": 2}])
def test_options_win_over_the_contract(tmp_path: Path, llava: str, options: dict[str, Any]) -> None:
    agree(tmp_path, 'vision = "frozen"', 'language = "lora"')
    report = check(llava, **options)
    assert "frozen_by_contract" not in report.facts["dry_run"]
    assert learning(report)["vision"] > 0
    assert not report.findings


def test_a_part_that_the_model_lacks_is_not_frozen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.detection.shrink import tiny_config

    (tmp_path / "config.json").write_text(json.dumps(tiny_config("llama").to_dict()), encoding="utf-8")
    agree(tmp_path, 'vision = "frozen"')
    monkeypatch.chdir(tmp_path)
    assert "frozen_by_contract" not in check(str(tmp_path)).facts["dry_run"]


def test_a_factory_is_held_against_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agree(tmp_path, 'vision = "frozen"')
    (tmp_path / "mine.py").write_text(
        "from tiny_vlm import TinyVLM, batch\ndef build():\n    return TinyVLM(), batch(0)\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    assert [f.rule for f in check(f"{tmp_path}/mine.py:build").findings] == ["contract-broken"]


LIGHTNING = """
import torch
from test_lightning_module import Lit, Split, {kind}
from tiny_vlm import TinyVLM, batch

class Mine({kind}):
    def __init__(self):
        super().__init__(TinyVLM())

def build():
    return Mine(), batch(0)
"""


@pytest.mark.parametrize("kind", ["Lit", "Split"])
def test_a_lightning_module_is_laid_out(tmp_path: Path, kind: str) -> None:
    (tmp_path / "mine.py").write_text(LIGHTNING.format(kind=kind), encoding="utf-8")
    report = check(f"{tmp_path}/mine.py:build")
    told = report.facts["dry_run"]
    assert "not_possible" not in told
    assert told["cost"]["bytes"]["parameters"] > 0 and told["cost"]["bytes"]["gradients"] > 0
    assert not report.findings and not report.crashed
