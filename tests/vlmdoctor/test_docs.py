"""The documentation says what is so."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_rules_page_is_what_the_docstrings_say():
    made = runpy.run_path(str(ROOT / "docs" / "make_rules.py"))["page"]()
    assert (ROOT / "docs" / "rules.md").read_text(encoding="utf-8") == made, "run docs/make_rules.py"


def test_evidence_page_is_what_the_code_says():
    made = runpy.run_path(str(ROOT / "docs" / "make_evidence.py"))["page"]()
    assert (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8") == made, "run docs/make_evidence.py"


def test_readme_holds_the_two_set_up_commands():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert "python -m pip install -c constraints.txt . && vlmdoctor train --watch-grads" in lines
    assert "python -m pip install -c constraints.txt -e '.[test]' && python -m pytest" in lines


def commands_in_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return sorted(set(re.findall(r"(?:`|^\$ |&& )vlmdoctor ([a-z-]+)", text, re.MULTILINE)))


@pytest.mark.parametrize("command", commands_in_readme())
def test_commands_in_the_readme_exist(command):
    done = subprocess.run(
        [sys.executable, "-m", "vlmdoctor", command, "--help"], capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_scripts_in_the_readme_are_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    scripts = set(re.findall(r"examples/\w+\.py", text))
    assert scripts and all((ROOT / script).is_file() for script in scripts)


def test_every_file_that_the_readme_links_to_is_there():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
