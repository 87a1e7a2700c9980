"""The samples of CONTRIBUTING.md: extracted, run, and silent on a healthy warm-up."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import tiny_vlm
import torch

from vlmdoctor.engine import Gatherer, judge
from vlmdoctor.examine import examine
from vlmdoctor.proof import prove
from vlmdoctor.rulebook import Rule, all_rules
from vlmdoctor.subject import Subject

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"```python\n# vlmdoctor/(\S+)\.py\n(.*?)```", PAGE, re.DOTALL))


def module(path: str) -> types.ModuleType:
    made = types.ModuleType(f"sample_{path.replace('/', '_')}")
    sys.modules[made.__name__] = made
    exec(compile(BLOCKS[path], f"CONTRIBUTING.md:{path}", "exec"), made.__dict__)
    return made


@pytest.fixture(scope="module")
def sample() -> Rule:
    return module("rules/opt/group_rates_far_apart").group_rates_far_apart


@pytest.fixture
def repair() -> types.ModuleType:
    return module("repairs/group_rates_far_apart")


def test_its_examples_are_as_the_test_of_all_rules_wants_them(sample: Rule) -> None:
    rules = [*all_rules(), sample]
    for example in sample.bad_examples:
        report = judge(rules, Gatherer(None, [example()]), command="t", target="t")
        assert [finding.rule for finding in report.findings] == [sample.name] and not report.crashed
    assert sample.bad_examples and len(sample.good_examples) == 2
    for example in sample.good_examples:
        report = judge(rules, Gatherer(None, [example()]), command="t", target="t")
        assert report.findings == () and sample.name in report.ran


def test_its_code_and_name_are_free_and_its_page_is_as_the_text_says(sample: Rule) -> None:
    assert not any(other.is_called(known) for other in all_rules() for known in (sample.name, sample.code))
    headings = [line for line in sample.doc.splitlines() if line.startswith("## ")]
    assert headings == re.findall(r"`(## [^`]+)`", PAGE)
    assert len(sample.summary) < 110


def groups(rate: float) -> Subject:
    model = tiny_vlm.TinyVLM()
    learning = dict(model.named_parameters())
    slow = [learning.pop(name) for name in list(learning) if "proj" in name]
    optimizer = torch.optim.AdamW(
        [{"params": list(learning.values())}, {"params": slow, "lr": rate}], lr=1e-2
    )
    return Subject(model, tiny_vlm.batch(0), optimizer=optimizer)


def test_a_healthy_warmup_is_left_alone(sample: Rule) -> None:
    subject = groups(1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(subject.optimizer, lambda step: min(1.0, step / 100))
    subject.lr_scheduler = schedule
    for _ in range(3):
        assert examine(subject, target="", rules=[sample], depth="static").findings == ()
        subject.optimizer.step()
        schedule.step()


def test_the_repair_proves_the_finding(
    sample: Rule, repair: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prove, "repair_of", lambda rule: repair if rule == sample.name else None)
    (finding,) = examine(groups(1e-30), target="", rules=[sample]).findings
    assert finding.proof is not None and finding.proof.works and finding.certainty == "proven"
    assert "0.01" in finding.proof.tried


def test_the_commands_of_the_text_are_there() -> None:
    root = Path(__file__).parents[2]
    for path in re.findall(r"`(rules/[\w/]+\.py)`", PAGE):
        assert (root / "vlmdoctor" / path).is_file()
    assert "docs/make_rules.py" in PAGE and (root / "docs" / "make_rules.py").is_file()
