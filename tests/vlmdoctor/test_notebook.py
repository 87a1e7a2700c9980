"""What a notebook shows. IPython is played by two small modules, except in the last test."""

from __future__ import annotations

import json
import linecache
import math
import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from watched import Model, make_batch

import vlmdoctor
from vlmdoctor.errors import FindingsError
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.notebook.curves import HEIGHT, WIDTH, Curve, svg
from vlmdoctor.notebook.live import EVERY_SECONDS, LiveRun
from vlmdoctor.notebook.progress import WAIT_SECONDS, Line
from vlmdoctor.notebook.run_view import RunState, run_html
from vlmdoctor.notebook.screen import KERNEL, screen


class Kernel:
    """A notebook's kernel: what was displayed, and what stands there now."""

    def __init__(self) -> None:
        self.execution_count = 1
        self.kernel = types.SimpleNamespace(session=types.SimpleNamespace(pid=os.getpid()))
        self.outputs: dict[str, dict[str, str]] = {}
        self.shown: list[dict[str, str]] = []

    def display(self, bundle: dict[str, str], *, raw: bool, display_id: str) -> None:
        assert raw and display_id not in self.outputs
        self._show(bundle, display_id)

    def update_display(self, bundle: dict[str, str], *, raw: bool, display_id: str) -> None:
        assert raw and display_id in self.outputs
        self._show(bundle, display_id)

    def _show(self, bundle: dict[str, str], display_id: str) -> None:
        self.outputs[display_id] = bundle
        self.shown.append(bundle)

    @property
    def html(self) -> str:
        [only] = self.outputs.values()
        return only["text/html"]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    played = Kernel()
    ipython, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    vars(ipython).update(get_ipython=lambda: played, display=display)
    vars(display).update(display=played.display, update_display=played.update_display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return played


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def trained(
    steps: int, each: Callable[[int], None] = lambda _: None, **options: Any
) -> tuple[Any, list[float]]:
    torch.manual_seed(0)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    losses = []
    with vlmdoctor.watch(model, optimizer, total_steps=steps, **options) as watcher:
        for number, batch in enumerate([make_batch() for _ in range(steps)]):
            optimizer.zero_grad()
            loss = model(**batch).loss
            loss.backward()
            each(number)
            optimizer.step()
            losses.append(float(loss.detach()))
    return watcher, losses


def test_a_watched_run_is_one_output_that_is_updated(kernel: Kernel, capsys: pytest.CaptureFixture) -> None:
    watcher, _ = trained(12)
    assert len(kernel.outputs) == 1 and 2 <= len(kernel.shown) <= 12
    assert "step 1 of 12" in kernel.shown[0]["text/plain"]
    assert "step 12 of 12" in kernel.html and "finished after" in kernel.html
    for part in ("Loss", "vision", "projector", "language", "head", "<polyline class='loss'"):
        assert part in kernel.html
    assert watcher._repr_html_() == kernel.html
    assert "\n" not in repr(watcher) and "step 12 of 12, loss " in repr(watcher)
    assert capsys.readouterr() == ("", "")


def test_it_is_updated_on_time_and_not_on_steps(kernel: Kernel) -> None:
    clock = Clock()
    view = LiveRun(screen(), clock)
    for _ in range(100):  # of a second each
        if view.due:
            view.show(lambda: RunState(target="it", steps=1))
        clock.now += 1.0
    assert len(kernel.shown) == math.ceil(100 / EVERY_SECONDS)

    def slowly() -> RunState:
        clock.now += 1.0
        return RunState(target="it", steps=1)

    clock.now = 1000.0
    view.show(slowly)
    clock.now += 150.0
    assert not view.due  # a view that takes a second is shown every few minutes
    clock.now += 100.0
    assert view.due


def test_the_numbers_are_those_of_an_unwatched_notebook(kernel: Kernel) -> None:
    with_view, losses = trained(8)
    del sys.modules["IPython"]
    without, same = trained(8)
    assert kernel.shown and losses == same
    assert with_view.history().equals(without.history())


def test_a_notebook_that_fails_ends_nothing(kernel: Kernel) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no comm")

    vars(sys.modules["IPython.display"])["display"] = broken
    watcher, losses = trained(4, on_error="raise")
    assert len(losses) == 4 and not kernel.shown and len(watcher.history()) == 4


def test_a_later_cell_has_an_output_of_its_own(kernel: Kernel) -> None:
    place = screen()
    assert place is not None
    place.show("one", "")
    place.show("two", "")
    kernel.execution_count = 2
    place.show("three", "")
    assert [output["text/html"] for output in kernel.outputs.values()] == ["two", "three"]


@pytest.mark.parametrize("why", ["no IPython", "a terminal", "a forked process", "it raises"])
def test_elsewhere_nothing_is_shown(why: str, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "no IPython":
        monkeypatch.setitem(sys.modules, "IPython", None)
    elif why == "a terminal":
        del kernel.kernel
    elif why == "a forked process":
        kernel.kernel.session.pid += 1
    else:
        vars(sys.modules["IPython"])["get_ipython"] = lambda: 1 / 0
    assert screen() is None
    assert not LiveRun(screen()).due


def test_a_check_has_a_line_that_is_gone_afterwards(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmdoctor.notebook.progress.WAIT_SECONDS", -1.0)
    monkeypatch.setattr("vlmdoctor.notebook.progress.EVERY_SECONDS", 0.0)
    report = vlmdoctor.check(Model(), make_batch())
    assert "checking Model: backward …" in [bundle["text/plain"] for bundle in kernel.shown]
    # One line, nothing left of it, and no view of the steps that the check takes.
    assert kernel.html == "" and len(report.ran) > 20
    assert not any("vlmdoctor-run" in bundle["text/html"] for bundle in kernel.shown)


def test_a_quick_check_shows_nothing(kernel: Kernel) -> None:
    clock = Clock()
    place = screen()
    assert place is not None
    line = Line(place, "it", clock)
    line("forward")
    line.clear()
    assert not kernel.shown
    line = Line(place, "it", clock)
    clock.now += WAIT_SECONDS
    line("forward")
    line("backward")  # at once after it
    line.clear()
    assert [bundle["text/plain"] for bundle in kernel.shown] == ["checking it: forward …", ""]


def test_names_and_messages_are_text() -> None:
    finding = Finding(message="<b>loud</b>", severity=Severity.ERROR, rule="a-rule", code="X1", step=3)
    state = RunState(
        target="<script>1</script>", steps=4, findings=(finding,), error="<i>it</i>", phase="stopped"
    )
    page = run_html(state)
    assert "<script>" not in page and "<b>loud" not in page and "<i>it" not in page
    assert "✗ error</b> from step 3: &lt;b&gt;loud" in page


def test_a_run_without_a_loss_says_so() -> None:
    assert "loss not seen" in run_html(RunState(target="it", steps=4))
    assert "loss not seen" not in run_html(RunState(target="it", steps=0))


@given(
    st.lists(st.tuples(st.integers(0, 2**40), st.floats()), max_size=700, unique_by=lambda point: point[0]),
    st.booleans(),
)
def test_any_numbers_make_a_picture(points: list[tuple[int, float]], log: bool) -> None:
    text = svg([Curve("loss", sorted(points)), Curve("vision", [(5, 0.0)])], "x", log=log)
    picture = ElementTree.fromstring(text)
    for line in picture.iter("polyline"):
        for pair in line.attrib["points"].split():
            x, y = map(float, pair.split(","))
            assert 0 <= x <= WIDTH and 0 <= y <= HEIGHT
    odd = sum(not math.isfinite(value) for _, value in points)
    crosses = sum(element.attrib.get("class") == "odd" for element in picture.iter("text"))
    assert (crosses > 0) == (odd > 0)


def test_the_history_is_a_table() -> None:
    watcher, losses = trained(12, every=4)
    table = watcher.history()
    assert list(table.index) == list(range(12)) and table.index.name == "step"
    assert table["loss"].tolist() == pytest.approx(losses)
    assert list(table.columns[:2]) == ["loss", "lr"] and "grad_norm/vision" in table
    # The first five steps and every fourth are sampled.
    assert table["grad_norm"].dropna().index.tolist() == [0, 1, 2, 3, 4, 8]


def test_the_history_of_no_step_is_an_empty_table() -> None:
    model = Model()
    with vlmdoctor.watch(model) as watcher:
        table = watcher.history()
    assert len(table) == 0 and "loss" in table.columns
    with pytest.raises(vlmdoctor.UserError, match="there is nothing to plot: no optimizer step was seen"):
        watcher.plot()


def test_figures_are_shown_without_pyplot() -> None:
    code = """
import sys, torch, vlmdoctor
sys.path.insert(0, sys.argv[1])
import matplotlib
from watched import Model, make_batch
before = matplotlib.rcParams.copy()
model = Model()
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
with vlmdoctor.watch(model, optimizer) as watcher:
    model(**make_batch()).loss.backward()
    optimizer.step()
figure = watcher.plot()
png, size = figure._repr_png_()
assert png.startswith(b"\\x89PNG") and size["width"] == 880, size
report = vlmdoctor.check(Model(), make_batch())
assert "tensors get a gradient" in report.plot().texts[0].get_text()
assert report.plot()._repr_png_()[0].startswith(b"\\x89PNG")
assert matplotlib.rcParams.copy() == before
assert {"matplotlib.pyplot", "IPython"}.isdisjoint(sys.modules)
"""
    command = [sys.executable, "-W", "error", "-c", code, str(Path(__file__).parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_check_without_gradients_has_no_figure() -> None:
    with pytest.raises(vlmdoctor.UserError, match=r"there is nothing to plot: .+\."):
        vlmdoctor.check(Model()).plot()


def test_an_error_of_the_user_has_no_frames() -> None:
    with pytest.raises(vlmdoctor.UserError) as caught:
        vlmdoctor.check(Model(), fail_on="often")
    [line] = caught.value._render_traceback_()
    assert line == "UserError: fail_on can't be 'often'; choose one of error, warning, never."
    assert FindingsError("the card\nthe summary")._render_traceback_() == ["the card\nthe summary"]


def test_in_a_cell_no_line_is_left_of_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmdoctor.cli import check

    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.delenv(KERNEL, raising=False)
    assert check._cursor_moves()
    monkeypatch.setenv(KERNEL, "12")  # `!vlmdoctor check` has a terminal that nobody sees
    assert not check._cursor_moves()


@pytest.mark.parametrize("form", ["full", "json"])
def test_in_a_cell_the_lines_of_a_run_are_not_on_standard_error(form: str, tmp_path: Path) -> None:
    command = f"-m vlmdoctor train --max-steps 2 --no-preflight --output-format {form} --out run".split()
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, KERNEL: "12", "PYTHONPATH": str(Path(vlmdoctor.__file__).parents[1])},
        timeout=120,
    )
    assert done.returncode in (0, 1, 2), done.stderr
    line = "[Train Epoch 1] step: 0, loss: "
    if form == "full":
        assert line in done.stdout and done.stderr == ""
    else:
        # What a program reads stays clean.
        assert json.loads(done.stdout)["command"] == "train" and line in done.stderr


def test_the_code_of_a_cell_has_a_place_and_a_line(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmdoctor.probes.failure.traceback import line_of, shown_path
    from vlmdoctor.sandbox.reading import source_line

    file = "/tmp/ipykernel_12/345.py"
    known = types.SimpleNamespace(
        format_code_name=lambda name: ("Cell", "In[4]") if name == file else ("File", name)
    )
    monkeypatch.setattr(kernel, "compile", known, raising=False)
    monkeypatch.setitem(linecache.cache, file, (9, None, ["import torch\n", "  y = layer(x)\n"], file))
    assert shown_path(file) == "Cell In[4]"
    assert source_line(file, 2) == line_of(file, 2) == "y = layer(x)"
    assert source_line(file, 3) is None
    assert shown_path("/other.py") == "/other.py"


def test_installed_code_is_not_the_users() -> None:
    from vlmdoctor.probes.failure.traceback import is_users

    assert is_users("/home/me/model.py") and is_users("/tmp/ipykernel_12/345.py")
    for file in (torch.overrides.__file__, "/home/me/.local/lib/python3.11/site-packages/x/y.py", "<string>"):
        assert not is_users(file)
    assert not is_users("/usr/local/lib/python3.12/dist-packages/x.py")


def test_in_a_real_notebook(tmp_path: Path) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    folders = [str(Path(__file__).parent), str(Path(vlmdoctor.__file__).parents[1])]
    cells = [
        f"import sys; sys.path[:0] = {folders!r}\nfrom test_notebook import trained",
        "watcher, _ = trained(6)",
        "watcher.plot()",
        "import vlmdoctor\nvlmdoctor.check(3, fail_on='often')",
    ]
    code = [nbformat.v4.new_code_cell(cell) for cell in cells]
    notebook = nbformat.v4.new_notebook(cells=code)
    nbclient.NotebookClient(notebook, timeout=120, allow_errors=True, cwd=str(tmp_path)).execute()
    outputs = [cell.outputs for cell in notebook.cells]
    [view] = outputs[1]
    assert view.output_type == "display_data" and "step 6 of 6" in view.data["text/html"]
    assert "image/png" in outputs[2][0].data
    assert outputs[3][0].traceback == [
        "UserError: fail_on can't be 'often'; choose one of error, warning, never."
    ]
