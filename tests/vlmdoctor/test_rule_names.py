"""Names and codes that rules had before: they go on selecting them, with a note."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.detection.case import Case
from benchmarks.detection.score import accepts
from vlmdoctor.rulebook import all_rules, find_rule, renamed, rules_in, select_rules

OLD = [(old, rule) for rule in all_rules() for old in rule.formerly]


def run(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vlmdoctor", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
    )


def test_there_are_old_names_and_codes() -> None:
    assert {"label-seen", "softmax-twice", "LOSS372"} <= {old for old, _ in OLD}


@pytest.mark.parametrize(("old", "rule"), OLD, ids=[old for old, _ in OLD])
def test_an_old_name_or_code_selects_the_rule(old: str, rule) -> None:
    assert find_rule(old) is rule
    assert select_rules((), select=[old]) == [rule]
    assert rule not in select_rules(all_rules(), ignore=[old])
    assert renamed([old, rule.name, "GRAD"]) == {old: rule.name}


def test_a_prefix_selects_by_old_codes_too() -> None:
    assert find_rule("pixel-range") in select_rules((), select=["IMG34"])


def test_no_old_name_is_a_name_of_today() -> None:
    today = {known for rule in all_rules() for known in (rule.name, rule.code)}
    assert not today & {old for old, _ in OLD}
    assert len({old for old, _ in OLD}) == len(OLD)
    assert rules_in()  # raises where two rules share a name or a code, of today or before


def test_the_page_is_found_by_the_old_name_with_a_note(tmp_path: Path) -> None:
    told = run("rule", "label-seen", folder=tmp_path)
    assert told.returncode == 0 and "label-leak" in told.stdout
    assert told.stderr.strip() == "vlmdoctor: label-seen was renamed to label-leak."
    assert "formerly label-seen" in told.stdout
    assert run("rule", "label-leak", folder=tmp_path).stderr == ""


def test_settings_and_options_take_old_names_with_one_note_each(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[tool.vlmdoctor]\nignore = ["LOSS372"]\n', encoding="utf-8")
    told = run(
        "check", "minivlm:tiny", "--depth", "static", "--select", "table-garbage", "--output-format", "json",
        folder=tmp_path,
    )  # fmt: skip
    assert told.returncode == 0 and '"uninitialised-buffer"' in told.stdout
    assert told.stderr.splitlines() == [
        "vlmdoctor: table-garbage was renamed to uninitialised-buffer.",
        "vlmdoctor: LOSS372 was renamed to probabilities-as-logits.",
    ]


def test_the_benchmark_takes_old_names() -> None:
    case = Case("x", "x", lambda: None, rules=("softmax-twice",))
    assert accepts(case, {"rule": "probabilities-as-logits", "code": "LOSS140"})
    assert not accepts(case, {"rule": "nll-without-log", "code": "LOSS141"})
