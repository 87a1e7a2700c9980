"""The live view and the plain lines: what they show at which width, and what they cost."""

from __future__ import annotations

import io
import math
import random
import time

import pytest
import recorded_runs as runs
import snapshot
from rich.console import Console

from vlmdoctor.evidence.parameters import Parameter
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.live import display
from vlmdoctor.live.spark import ASCII, UNICODE, figure, signs_for, sparkline
from vlmdoctor.live.state import KEPT, Curve, LiveState
from vlmdoctor.live.view import draw
from vlmdoctor.runs.numbers import clock, count

EXPLOSION = Finding(
    message="the gradient norm rose 140-fold within 20 steps",
    severity=Severity.ERROR,
    step=1210,
    rule="exploding-gradient",
    code="GRAD203",
)
IGNORED = Finding(
    message="the answers are the same when the images are exchanged",
    severity=Severity.WARNING,
    step=410,
    rule="image-ignored",
    code="IMG101",
)


def new_state(frozen=()):
    now = [0.0]
    state = LiveState(clock=lambda: now[0])
    state.now = now
    state.title, state.place = "tiny on digits", "cpu, fp32"
    state.total_steps, state.clip = 2000, 1.0
    listed = [{**p, "shape": tuple(p["shape"])} for p in runs.parameters(frozen)]
    state.describe(Parameter(**values) for values in listed)
    return state


def run_to(state, steps, *, every=10, change=lambda row: row):
    rng = random.Random(3)
    for step in range(steps):
        state.now[0] += 0.058
        row = change(runs.step_row(step, 2000, rng, every, 0.42))
        state.log(row)
        state.sample(row)
        if (step + 1) % 250 == 0:
            state.evaluated(runs.evaluation_row(step, 2000, 0.42))
    return state


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_view_in_the_middle_of_a_run(width):
    state = run_to(new_state(), 1240)
    state.judged([EXPLOSION])
    text = draw(state, width)
    assert max(map(len, text.plain.split("\n"))) <= width
    assert snapshot.matches(f"live-{width}", text.plain)


def test_the_view_before_the_first_step():
    assert snapshot.matches("live-start", draw(new_state(), 80).plain)


def test_the_view_of_an_unwatched_run():
    state = run_to(new_state(), 400, every=0)
    assert snapshot.matches("live-unwatched", draw(state, 80).plain)


def test_the_view_of_a_broken_run():
    def spoil(row):
        broken = {name: math.nan for name in row if name.startswith(("loss", "grad_norm", "update"))}
        dead = {"grad_norm/projector": 0.0} if "grad_norm/projector" in row else {}
        return {**row, **(broken if row["step"] >= 300 else dead)}

    state = run_to(new_state(frozen=("vision",)), 400, change=spoil)
    state.judged([EXPLOSION, IGNORED])
    state.judged([EXPLOSION])
    assert snapshot.matches("live-broken", draw(state, 80).plain)


def test_the_view_in_a_terminal_without_unicode():
    state = run_to(new_state(), 1240)
    state.judged([EXPLOSION])
    text = draw(state, 80, ASCII).plain
    text.encode("ascii")
    assert snapshot.matches("live-ascii", text)


def test_no_line_is_wider_than_the_terminal_at_any_width():
    state = run_to(new_state(), 600)
    state.title = "a-very-long-preset-name on /a/very/long/path/to/a/data/set/that/goes/on.json"
    state.judged([EXPLOSION, IGNORED])
    for width in range(50, 160):
        assert max(map(len, draw(state, width).plain.split("\n"))) <= width


def test_the_view_survives_a_run_of_one_step():
    state = run_to(new_state(), 1)
    assert "step 1 of 2,000" in draw(state, 80).plain


def test_drawing_costs_less_than_a_hundredth_of_a_step():
    state = run_to(new_state(), 1240)
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    view = display.LiveView(state, console)
    best = min(_seconds(lambda: console.print(view._draw())) for _ in range(5))
    # At 50 ms a step, drawing may take 0.5 ms of each second's 20 steps; tenfold for a slow, busy machine.
    assert best * display.REFRESHES_PER_SECOND < 0.1
    feeding = _seconds(lambda: run_to(new_state(), 200)) / 200
    assert feeding < 0.005


def _seconds(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def test_the_live_view_draws_stops_and_never_raises(monkeypatch):
    stream = io.StringIO()
    state = run_to(new_state(), 50)
    console = Console(file=stream, force_terminal=True, width=80, color_system=None)
    view = display.LiveView(state, console)
    view.start()
    view.say("a sentence with [brackets]")
    monkeypatch.setattr(display, "draw", lambda *_: 1 / 0)
    view.stop()
    view.stop()
    shown = stream.getvalue()
    assert "a sentence with [brackets]" in shown
    assert "step 50 of 2,000" in shown
    assert "can't be drawn" in shown


def test_plain_lines(tmp_path):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    state = new_state(frozen=("vision",))
    lines = display.PlainLines(state, stream)
    lines.start()
    lines.begin()
    rng = random.Random(1)
    for step in (0, 1):
        row = runs.step_row(step, 2000, rng, 10, 0.42)
        state.log(row)
        state.sample(row)
        lines.log(row)
    lines.evaluated(runs.evaluation_row(1999, 2000, 0.42))
    lines.noticed(EXPLOSION)
    lines.stop()
    stream.seek(0)
    assert snapshot.matches("plain-lines", stream.read())


def test_plain_lines_in_a_terminal_without_unicode():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    display.PlainLines(new_state(), stream).noticed(EXPLOSION)
    stream.seek(0)
    assert stream.read().startswith("? error  the gradient norm rose 140-fold within 20 steps")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stdout", "stderr", "environment", "kind"),
    [
        (Terminal(), Terminal(), {"TERM": "xterm-256color"}, display.LiveView),
        (Terminal(), Terminal(), {"TERM": "dumb"}, display.PlainLines),
        (Terminal(), Terminal(), {"TERM": "xterm", "CI": "true"}, display.PlainLines),
        (io.StringIO(), Terminal(), {"TERM": "xterm"}, display.PlainLines),
        (Terminal(), io.StringIO(), {"TERM": "xterm"}, display.PlainLines),
    ],
    ids=["terminal", "dumb", "ci", "piped", "stderr-piped"],
)
def test_a_live_view_only_where_somebody_watches(monkeypatch, stdout, stderr, environment, kind):
    for name in ("CI", "TERM", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", stdout)
    monkeypatch.setattr("sys.stderr", stderr)
    assert type(display.display_for(new_state())) is kind
    assert type(display.display_for(new_state(), quiet=True)) is display.Silent


def test_findings_that_no_longer_hold_are_said_to_be_over():
    state = run_to(new_state(), 100)
    assert state.judged([IGNORED]) == ([IGNORED], [])
    assert state.judged([IGNORED]) == ([], [])
    assert state.judged([]) == ([], [IGNORED])
    assert state.noticed["image-ignored"].gone == 99
    assert state.judged([IGNORED]) == ([IGNORED], []), "it came back"


def test_histories_are_bounded_and_keep_the_shape():
    history = Curve()
    for value in range(100_000):
        history.add(float(value))
    history.add(None)
    assert len(history.values) < KEPT
    assert history.values == sorted(history.values)
    assert history.last == 99_999


def test_the_time_left_is_that_of_the_pace_so_far():
    state = new_state()
    assert state.seconds_left is None
    run_to(state, 1000)
    assert state.seconds_left == pytest.approx(1000 * 0.058, rel=0.01)


def test_sparklines():
    assert sparkline([], 5) == ""
    assert sparkline([1.0, 1.0, 1.0], 5) == "▅▅▅"
    assert sparkline([1, 10, 100], 3, log=True) == "▁▅█"
    assert sparkline([1.0, math.nan, 2.0], 3) == "▁×█"
    assert sparkline([0.0, 1.0, 2.0, math.inf], 4, log=True) == "·▁█×"
    assert len(sparkline(list(range(1000)), 40)) == 40


def test_figures():
    assert [figure(v) for v in (None, 6.5223, 0.0, 0.00012, 1234.5, 3e7)] == [
        "",
        "6.5223",
        "0.0000",
        "1.2e-04",
        "1,234.5",
        "3.0e+07",
    ]
    assert [figure(v) for v in (math.nan, math.inf)] == ["NaN", "infinite"]
    assert [count(n) for n in (7, 8256, 26_223_616, 1_300_000_000)] == ["7", "8.3k", "26.2M", "1.3B"]
    assert [clock(s) for s in (7, 754, 3723)] == ["0:07", "12:34", "1:02:03"]


def test_signs_follow_the_encoding():
    assert signs_for("utf-8") is UNICODE
    assert signs_for("ascii") is ASCII
    assert signs_for("latin-1") is ASCII
    assert signs_for("no such encoding") is ASCII
