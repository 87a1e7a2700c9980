"""Every rule: documented, named, requiring what exists, true on its bad examples, silent on all good ones."""

from __future__ import annotations

import importlib
import re

import pytest

from vlmdoctor.engine import DEPTHS, Gatherer, judge, probe_of
from vlmdoctor.finding import Certainty
from vlmdoctor.report import Report
from vlmdoctor.rulebook import Rule, all_rules, find_rule
from vlmdoctor.subject import Subject

RULES = all_rules()
AREAS = (
    *("ENV", "SRC", "CFG", "ROPE", "MASK", "DATA", "IMG", "PARAM", "GRAD", "OPT", "LOSS", "NUM"),
    *("CKPT", "PERF", "DIST"),
)


def examples(kind: str) -> list:
    return [
        pytest.param(rule, example, id=f"{rule.name}-{example.__name__}")
        for rule in RULES
        for example in getattr(rule, f"{kind}_examples")
    ]


def examine(example) -> Report:
    """All rules on what an example returns: a subject to probe, one piece of evidence, or several."""
    made = example()
    if isinstance(made, Subject):
        gather = Gatherer(made)
    else:
        gather = Gatherer(None, made if isinstance(made, tuple | list) else (made,))
    return judge(RULES, gather, command="test", target=example.__name__)


@pytest.mark.parametrize(("rule", "example"), examples("bad"))
def test_bad_example_fires_this_rule_and_no_other(rule: Rule, example) -> None:
    report = examine(example)
    assert not report.crashed
    assert [finding.rule for finding in report.findings] == [rule.name]
    finding = report.findings[0]
    assert finding.message and not finding.message.endswith(".")
    assert finding.cause and (finding.fix is None or finding.fix.text)
    assert all(link.startswith("https://") for link in finding.links)
    assert set(rule.links) <= set(finding.links)
    unsure = re.search(r"\binferred\b|\bestablished\b", finding.cause) is not None
    if finding.proof is not None:
        assert finding.certainty is Certainty.PROVEN
    elif unsure:
        assert finding.certainty is Certainty.INFERRED, finding.cause


@pytest.mark.parametrize(("rule", "example"), examples("good"))
def test_good_example_fires_nothing(rule: Rule, example) -> None:
    report = examine(example)
    assert not report.crashed
    assert rule.name in report.ran
    assert [(finding.rule, finding.message) for finding in report.findings] == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
class TestRule:
    def test_has_a_name_and_a_code(self, rule: Rule) -> None:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", rule.name)
        assert re.fullmatch(r"[A-Z]+\d{3}", rule.code)
        assert rule.area in AREAS
        assert find_rule(rule.name) is find_rule(rule.code) is rule

    def test_sits_in_the_file_that_is_named_after_it(self, rule: Rule) -> None:
        folder, name = rule.function.__module__.split(".")[-2:]
        assert folder == rule.area.lower()
        assert name == rule.name.replace("-", "_") == rule.function.__name__

    def test_is_documented(self, rule: Rule) -> None:
        assert rule.summary.endswith(".") and len(rule.summary) < 110
        headings = [line for line in rule.doc.splitlines() if line.startswith("## ")]
        assert headings == ["## Why it matters", "## Confidence and false positives", "## What to do"]
        for heading in headings:
            body = rule.doc.partition(heading)[2].partition("\n## ")[0]
            assert len(body.split()) >= 8, heading

    def test_has_examples(self, rule: Rule) -> None:
        assert rule.bad_examples and rule.good_examples

    def test_requires_evidence_that_can_be_had(self, rule: Rule) -> None:
        assert rule.requirements
        for evidence_class, _ in rule.requirements.values():
            module = importlib.import_module(evidence_class.__module__)
            assert module.DEPTH in DEPTHS
            assert hasattr(module, "GIVEN") or callable(probe_of(evidence_class))

    def test_explains_rules_that_exist(self, rule: Rule) -> None:
        assert set(rule.explains) <= {other.name for other in RULES} - {rule.name}


def test_names_and_codes_are_unique() -> None:
    assert len({rule.name for rule in RULES}) == len({rule.code for rule in RULES}) == len(RULES)


def test_explanations_form_no_circle() -> None:
    explains = {rule.name: rule.explains for rule in RULES}

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join((*above, name))
        for symptom in explains[name]:
            visit(symptom, (*above, name))

    for name in explains:
        visit(name, ())
