"""Hostile input: a sample of every class behaves, and the harness that says so sees what does not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.hostile.harness.bases import RUN
from benchmarks.hostile.harness.judge import faults, kind
from benchmarks.hostile.harness.outcome import Outcome
from benchmarks.hostile.harness.registry import classes, shares
from benchmarks.hostile.harness.runner import Item, Result, run_all
from benchmarks.hostile.harness.texts import TEXTS, as_argument, as_file_name
from benchmarks.hostile.harness.trial import Base, Folder, Trial

INPUTS = 220
THIS = "tests.vlmdoctor.test_hostile"


def cheap(trial: Trial) -> bool:
    """Whether it is about something else than training, which takes seconds."""
    trains = trial.argv[:1] == ("train",) or Base(RUN) in trial.files.values()
    return not trains and not trial.fresh


def sample() -> Iterator[Item]:
    groups = list(classes().values())
    for group in groups:
        count = shares(groups, INPUTS)[group.name]
        for index, trial in enumerate(group.inputs(0, count)):
            if cheap(trial):
                yield f"{group.name}:{index}", group, trial


def results_of(items: list[Item]) -> dict[str, Result]:
    found: dict[str, Result] = {}
    run_all(iter(items), 1, lambda result: found.update({result.reference: result}))
    return found


# What misbehaves in the ways that the harness is to see; run in its children.
def writes_outside(_: object) -> None:
    Path("../../outside").write_text("x")


def changes_input(_: object) -> None:
    Path("given").write_text("other")


def runs_a_payload(_: object) -> None:
    Path("EXECUTED").touch()


def connects(_: object) -> None:
    import socket

    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", 9), timeout=1)


def leaves_a_process(_: object) -> None:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)


def starts_a_program(_: object) -> None:
    subprocess.run(["true"], check=True)


def waits(_: object) -> None:
    os.read(os.pipe()[0], 1)


def takes_memory(_: object) -> None:
    assert len(b"x" * 1_700_000_000)


def reads_a_bait(_: object) -> None:
    assert Path("../bait/secret").read_bytes()


def dies(_: object) -> None:
    os.abort()


def asserts(_: object) -> None:
    raise AssertionError("no")


def leaves_a_file(_: object) -> None:
    Path("../out/.report.part").touch()


def behaves(_: object) -> None:
    Path("../out/report").write_text("x")


PLANTED = {
    writes_outside: "write",
    changes_input: "changed",
    runs_a_payload: "executed",
    connects: "network",
    leaves_a_process: "left running",
    starts_a_program: "program",
    waits: "hung",
    takes_memory: "memory",
    reads_a_bait: "read",
    dies: "killed by SIGABRT",
    asserts: "traceback",
    leaves_a_file: "left",
    behaves: None,
}


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    """The sample and the planted misbehaviour, in one worker."""
    group = next(iter(classes().values()))
    files = {"in/given": b"x", "bait/secret": b"x", "in/folder": Folder()}
    # Two seconds are enough to see that something hangs. What takes memory has the harness's own ten: a
    # virtual machine that gave free pages back to its host gets them again at half a gigabyte a second.
    given = {takes_memory: Trial.seconds}
    planted = [
        (
            f.__name__,
            group,
            Trial(f.__name__, files=files, call=f"{THIS}:{f.__name__}", seconds=given.get(f, 2)),
        )
        for f in PLANTED
    ]
    return results_of([*planted, *sample()])


@pytest.mark.parametrize("name", list(classes()))
def test_no_input_of_the_sample_fails(name: str, results: dict[str, Result]) -> None:
    tried = [result for ref, result in results.items() if ref.startswith(f"{name}:")]
    assert len(tried) >= 10
    failed = {result.reference: result.faults for result in tried if result.faults}
    assert not failed, f"again with: python -m benchmarks.hostile --only {next(iter(failed))}"


@pytest.mark.parametrize("misbehaves", PLANTED, ids=lambda f: f.__name__)
def test_the_harness_sees_what_misbehaves(misbehaves: object, results: dict[str, Result]) -> None:
    wanted = PLANTED[misbehaves]  # type: ignore[index]
    kinds = {kind(fault) for fault in results[misbehaves.__name__].faults}  # type: ignore[attr-defined]
    assert kinds == ({wanted} if wanted else set())


def seen(status: int = 0, stdout: str = "", stderr: str = "") -> Outcome:
    return Outcome(status, stdout.encode("utf-8", "surrogatepass"), stderr.encode(), 0.1, 1.0)


def trial(*argv: str, **env: str) -> Trial:
    return Trial("", argv, env=env)


IN_CI = {"GITHUB_ACTIONS": "true"}


@pytest.mark.parametrize(
    ("outcome", "given", "wanted"),
    [
        (seen(stdout="a\x1b[2J"), trial(), "unplain"),
        (seen(stdout="a\u202eb"), trial(), "unplain"),
        (seen(stdout="a\u2028b"), trial(), "unplain"),
        (seen(stdout="a\x85b"), trial(), "unplain"),
        (seen(stderr="\r"), trial(), "unplain"),
        (seen(stdout="\ud800"), trial(), "not UTF-8"),
        (seen(stdout="x\n  ::stop-commands::x"), trial(**IN_CI), "command"),
        (seen(stdout="x ##[add-mask]x"), trial(**IN_CI), "command"),
        (seen(stdout="::group::x"), trial("--output-format", "github", **IN_CI), "command"),
        (seen(stdout=":::::::---"), trial(**IN_CI), None),
        (seen(stdout="::error title=a::x"), trial("--output-format", "github", **IN_CI), None),
        (seen(stdout="a [x] ::b"), trial(**IN_CI), None),
        (seen(stdout='{"a": NaN}'), trial("--output-format", "json"), "malformed"),
        (seen(stdout='{"a": "\\ud800"}'), trial("--output-format=json"), "malformed"),
        (
            seen(stdout='{"crashed": [{"rule": "a", "error": "b"}]}'),
            trial("--output-format", "json"),
            "crashed",
        ),
        (seen(stdout="<a>"), trial("--output-format", "junit"), "malformed"),
        (seen(stdout="<p><script>hostile()</script>"), trial("--output-format", "html"), "script"),
        (seen(stdout="<img src=x onerror=hostile()>"), trial("--output-format", "html"), "script"),
        (seen(stdout="<p>&lt;script>hostile()"), trial("--output-format", "html"), None),
        (seen(2, stderr="vlmdoctor: it is not there."), trial(), None),
        (seen(2, stderr="Usage: vlmdoctor\n\nError"), trial(), None),
        (seen(2), trial(), "message"),
        (seen(2, stderr="it is not there"), trial(), "message"),
        (seen(2, stderr="vlmdoctor: a\nb"), trial(), "message"),
        (seen(2, stderr="vlmdoctor: " + "a" * 5000), trial(), "message"),
        (seen(3), trial(), "status"),
        (seen(120), trial(), "status"),
        (seen(2, stderr="Traceback (most recent call last):\nx\nvlmdoctor: a"), trial(), "traceback"),
        (seen(2, stderr="vlmdoctor: this is a fault of vlmdoctor itself"), trial("-v"), "traceback"),
    ],
)
def test_the_judge(outcome: Outcome, given: Trial, wanted: str | None) -> None:
    kinds = {kind(fault) for fault in faults(given, outcome)}
    assert kinds == ({wanted} if wanted else set())


def test_inputs_are_the_same_again_and_each_can_be_made_alone() -> None:
    for group in classes().values():
        made = list(group.inputs(5, 12))
        assert made == list(group.inputs(5, 12)) and made[:4] == list(group.inputs(5, 4))
        assert made != list(group.inputs(6, 12))


def test_the_texts_can_be_names_and_arguments() -> None:
    assert len(set(TEXTS)) >= 100
    for text in TEXTS:
        assert "\0" not in as_argument(text)
        assert 0 < len(os.fsencode(as_file_name(as_argument(text)))) < 256
