"""The command line as a new user meets it: help, completion, the newest run, and how to go on."""

import json
import os
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest

from minivlm.errors import reason_of, whole_reason_of
from minivlm.newest import CHECKPOINTS, RECORDED, newest_run
from minivlm.progress import shown
from minivlm.train import resume_command

HEAVY = ("torch", "transformers", "matplotlib", "pandas", "numpy")
COMMANDS = ("check", "check-env", "init", "look", "report", "rule", "rules", "train")


def run(*arguments, module="vlmdoctor", cwd=None, **environment):
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "80", **environment},
        timeout=120,
    )


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_has_one_look_and_fits(command, columns):
    page = run(*filter(None, [command]), "-h", COLUMNS=str(columns)).stdout
    assert page.startswith("Usage: python -m vlmdoctor")
    assert page == run(*filter(None, [command]), "--help", COLUMNS=str(columns)).stdout
    assert max(map(len, page.splitlines())) <= columns
    for drawn in ("│", "[[", "<str>", "<bool>", "[x>", "{"):
        assert drawn not in page, drawn
    assert ("Commands:" if not command else f"Examples:\n  vlmdoctor {command}") in page


def test_dry_run_output_and_rules_have_panels_of_their_own():
    page = run("check", "-h").stdout
    titles = [line for line in page.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert titles[0] == "Arguments:" and titles[1] == "Options:"
    assert titles[2].startswith("Dry run") and titles[3:] == ["Rules:", "Output:", "Examples:"]
    assert "--gradient-checkpointing " in page


def test_minivlm_has_the_same_look():
    assert run("-h", module="minivlm").stdout.startswith("Usage: python -m minivlm [OPTIONS] COMMAND")
    assert "Examples:\n  minivlm generate" in run("generate", "-h", module="minivlm").stdout


def test_version_in_short():
    assert run("-V").stdout == run("--version").stdout != ""


def test_an_area_is_listed_and_a_word_filters():
    area = run("rule", "grad")
    assert area.returncode == 0 and area.stdout.startswith("GRAD  gradients\n")
    assert "GRAD201" in area.stdout and "MASK101" not in area.stdout
    found = json.loads(run("rules", "mask", "causal", "--output-format", "json").stdout)
    assert "MASK101" in {one["code"] for one in found}
    assert {one["code"][:4] for one in found} == {"MASK"}
    two = json.loads(run("rule", "ROPE101", "no-gradient", "--output-format", "json").stdout)
    assert [one["code"] for one in two] == ["ROPE101", "GRAD201"]


@pytest.mark.parametrize("command", ["rule", "rules"])
def test_an_area_that_is_none_gets_a_suggestion(command):
    ended = run(command, "GRADD")
    assert ended.returncode == 2 and ended.stdout == ""
    assert "did you mean 'GRAD'" in ended.stderr


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("rule GRAD20", "GRAD201"),
        ("check minivlm --select no-gr", "no-gradient"),
        ("check config.json --gpu a100", "a100-80"),
        ("check minivlm --output-format js", "json"),
        ("check minivlm --depth st", "static"),
        ("check minivl", "minivlm:tiny"),
        ("check-env --ignore GRA", "GRAD"),
    ],
)
def test_a_shell_completes_without_the_heavy_packages(words, expected):
    code = (
        "import sys, atexit\n"
        f"atexit.register(lambda: print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr))\n"
        "sys.argv = ['vlmdoctor']\n"
        "from vlmdoctor.cli.main import run\nrun()\n"
    )
    typed = f"vlmdoctor {words}"
    environment = {
        "_VLMDOCTOR_COMPLETE": "complete_bash",
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
    }
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert expected in ended.stdout.split(), ended.stderr
    assert ended.stderr.strip().splitlines()[-1] == "[]"


def test_without_a_run_report_and_resume_say_so_in_one_sentence(tmp_path):
    for arguments in (["report"], ["train", "--resume"]):
        ended = run(*arguments, cwd=tmp_path)
        assert ended.returncode == 2 and ended.stdout == ""
        assert "under runs/" in ended.stderr and len(ended.stderr.splitlines()) == 1


def test_the_newest_run_is_the_one_changed_last(tmp_path):
    assert newest_run(RECORDED, tmp_path) is None
    for name, at in (("a", 300), ("b", 200)):
        step = tmp_path / name / "checkpoints" / "step-1"
        step.mkdir(parents=True)
        (tmp_path / name / RECORDED).touch()
        os.utime(tmp_path / name / RECORDED, (at, at))
        os.utime(step, (500 - at, 500 - at))
    assert newest_run(RECORDED, tmp_path) == tmp_path / "a"
    assert newest_run(CHECKPOINTS, tmp_path) == tmp_path / "b"


def test_the_command_that_goes_on_is_whole_and_quoted(tmp_path):
    stopped = SimpleNamespace(out="my run's", config=SimpleNamespace(max_steps=20))
    command = resume_command(["vlmdoctor", "train", "--ignore", "IMG"], stopped)
    assert shlex.split(command) == [
        *["vlmdoctor", "train", "--ignore", "IMG", "--resume", "my run's", "--max-steps", "20"]
    ]


@pytest.mark.parametrize(
    "error", [AssertionError(), TimeoutError(), KeyError(), ValueError(" \n. "), OSError()]
)
def test_a_reason_is_never_empty(error):
    assert reason_of(error) == whole_reason_of(error) == type(error).__name__
    from vlmdoctor.plain_text import described, first_line, raised

    for say in (described, first_line, raised):
        assert type(error).__name__ in say(error)


def test_an_evaluation_shows_how_far_it_is(capsys):
    with shown(every=0.0) as progress:
        progress(300, 900)
    assert capsys.readouterr().err == "evaluating: 300 of 900 answers\n"
