"""The command line as a user starts it: real processes."""

import json
import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "matplotlib", "pandas", "numpy")


def vlmdoctor(*arguments, cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-m", "vlmdoctor", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "100", **environment},
        timeout=120,
    )


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["rules"], ["train", "--help"], ["check", "--help"]]
)
def test_starts_without_the_heavy_packages(arguments):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['vlmdoctor', *{arguments!r}]\n"
        "try:\n    runpy.run_module('vlmdoctor', run_name='__main__')\n"
        "except SystemExit as end:\n    assert end.code in (0, None), end.code\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stderr.strip().splitlines()[-1] == "[]", done.stderr


def test_importing_either_package_changes_nothing():
    code = (
        "import logging, os, random, sys\n"
        "before = (dict(os.environ), random.getstate(), list(logging.root.handlers), logging.root.level)\n"
        "import vlmdoctor, minivlm\n"
        "assert before == (dict(os.environ), random.getstate(), list(logging.root.handlers), "
        "logging.root.level)\n"
        f"assert not [m for m in {HEAVY!r} if m in sys.modules]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_public_names_are_what_they_say():
    code = (
        "import vlmdoctor\n"
        "from vlmdoctor.watching import watcher\n"
        "from vlmdoctor.rulebook import all_rules\n"
        "for name in vlmdoctor.__all__: getattr(vlmdoctor, name)\n"
        "assert callable(vlmdoctor.watch) and callable(vlmdoctor.rule) and callable(vlmdoctor.check)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_rule_by_name_and_by_code():
    by_name = vlmdoctor("rule", "rope-table-dim")
    assert by_name.returncode == 0
    assert "ROPE101" in by_name.stdout
    assert vlmdoctor("rule", "ROPE101").stdout == by_name.stdout
    page = json.loads(vlmdoctor("rule", "ROPE101", "--output-format", "json").stdout)
    assert page["rule"] == "rope-table-dim"
    assert page["page"].startswith(page["summary"])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["rule", "rope-table-dimm"], "did you mean 'rope-table-dim'"),
        (["rule", "rope-table-dim", "--output-format", "xml"], "no output format 'xml'"),
        (["check", "minivlm", "--output-format", "xml"], "no output format 'xml'"),
        (["check", "minivlm", "--select", "GRADD"], "selects no rule"),
        (["check", "minivlm", "--fail-on", "sometimes"], "--fail-on can't be 'sometimes'"),
        (["train", "--output-file", "/no/such/folder/x.json", "--preset", "tinyy"], "tinyy"),
    ],
)
def test_bad_usage_is_one_sentence_and_status_2(arguments, sentence):
    done = vlmdoctor(*arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stdout == ""


def test_an_unknown_setting_is_refused(tmp_path):
    (tmp_path / "pyproject.toml").write_text('[tool.vlmdoctor]\nfail-onn = "error"\n')
    done = vlmdoctor("check", "minivlm", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean 'fail-on'" in done.stderr


def test_unknown_command_and_option_are_status_2():
    assert vlmdoctor("chekc").returncode == 2
    assert vlmdoctor("rules", "--nope").returncode == 2
