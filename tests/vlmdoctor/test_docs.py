"""The documentation says what is so."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_rules_page_is_what_the_docstrings_say():
    made = runpy.run_path(str(ROOT / "docs" / "make_rules.py"))["page"]()
    assert (ROOT / "docs" / "rules.md").read_text(encoding="utf-8") == made, "run docs/make_rules.py"


def test_readme_holds_the_two_set_up_commands():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert "python -m pip install -c constraints.txt . && vlmdoctor train --watch-grads" in lines
    assert "python -m pip install -c constraints.txt -e '.[test]' && python -m pytest" in lines


def commands_in_readme():
    inside = False
    for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = line == "```sh"
        elif inside and line.startswith(("vlmdoctor ", "python -m minivlm ", "python examples/")):
            yield line.partition("  #")[0].strip()


@pytest.mark.parametrize("command", sorted({" ".join(line.split()[:2]) for line in commands_in_readme()}))
def test_commands_in_the_readme_exist(command):
    program, name = command.split()[:2]
    if name == "-m":
        name = "minivlm"
    module = {"vlmdoctor": "vlmdoctor", "python": "minivlm"}[program]
    if name.startswith("examples/"):
        assert (ROOT / name).is_file()
        return
    arguments = ["--help"] if name == "minivlm" else [name, "--help"]
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_every_file_that_the_readme_links_to_is_there():
    import re

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
