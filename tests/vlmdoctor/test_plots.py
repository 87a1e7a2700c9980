"""The plots of recorded runs: made for every kind of run, true to the data, and repeatable."""

from __future__ import annotations

import itertools
import math
import re

import matplotlib
import numpy as np
import pytest
import recorded_runs as runs
from PIL import Image

from vlmdoctor.errors import UserError
from vlmdoctor.runs.columns import Series, read_recording
from vlmdoctor.runs.plots.grads import draw_grads
from vlmdoctor.runs.plots.heat import MOST_COLUMNS, cells
from vlmdoctor.runs.plots.loss import draw_loss
from vlmdoctor.runs.plots.marks import Mark
from vlmdoctor.runs.plots.style import DARK, MOST_POINTS, label_ends, new_figure, smooth, summarise


def spoil(row):
    """NaN from step 60 on, after a few steps of explosion."""
    if row["event"] == "step" and row["step"] >= 60:
        row["loss"] = math.nan
        row.update({name: math.nan for name in row if name.startswith(("grad_norm", "update"))})
    elif row["event"] == "step" and row["step"] > 40:
        row["loss"] *= 3.0 ** (row["step"] - 40)
    return row


def kill_projector(row):
    """The projector's gradient is exactly zero, and one layer's too."""
    for name in row:
        if name.startswith("grad_norm/projector") or name.endswith("encoder.layers.0"):
            row[name] = 0.0
    return row


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 1, "every": 1, "eval_every": 0},
        {"steps": 20, "every": 1, "eval_every": 0},
        {"steps": 400, "eval_every": 100, "findings": (runs.PLATEAU, runs.SPIKE)},
        {"steps": 100, "total": 900, "finished": False, "change": spoil},
        {"steps": 100, "change": kill_projector, "frozen": ("vision",)},
        {"steps": 30, "eval_every": 10, "change": lambda row: row if row["event"] == "evaluate" else None},
    ],
    ids=["one-step", "twenty", "usual", "nan", "dead-and-frozen", "no-steps"],
)
def test_every_run_can_be_drawn(tmp_path, options):
    recording = read_recording(runs.write_run(tmp_path / "run", **options))
    marks = [Mark.of(finding) for finding in recording.findings]
    loss, grads = tmp_path / "loss.png", tmp_path / "grads.png"
    draw_loss(recording, loss, headline="A headline", marks=marks)
    assert draw_grads(recording, grads, headline="A headline", marks=marks) is recording.watched
    for path in [loss] + [grads] * recording.watched:
        with Image.open(path) as image:
            assert image.width == 1584
            # Something is drawn: not one flat colour.
            assert len(image.convert("L").resize((64, 48)).getcolors(4096)) > 8


def test_an_unwatched_run_has_no_picture_of_gradients(tmp_path):
    recording = read_recording(runs.write_run(tmp_path, steps=40, every=0, eval_every=0))
    assert not recording.watched
    assert draw_grads(recording, tmp_path / "grads.png", headline="x") is False
    assert not (tmp_path / "grads.png").exists()


def test_a_long_run_is_drawn_as_bands_and_stays_small(tmp_path):
    def ten_rows_in_one(row):
        return {**row, "step": row["step"] * 50} if row["event"] == "step" else row

    folder = runs.write_run(tmp_path / "run", steps=4000, every=2, eval_every=0, change=ten_rows_in_one)
    recording = read_recording(folder)
    assert recording.last_step == 199_950
    draw_loss(recording, tmp_path / "loss.svg", headline="x")
    draw_grads(recording, tmp_path / "grads.svg", headline="x")
    assert (tmp_path / "loss.svg").stat().st_size < 400_000
    assert (tmp_path / "grads.svg").stat().st_size < 900_000


def test_the_same_run_gives_the_same_bytes(tmp_path):
    recording = read_recording(runs.write_run(tmp_path / "run", steps=50, eval_every=0))
    for name in ("one.svg", "two.svg", "one.png", "two.png"):
        draw_loss(recording, tmp_path / name, headline="x", theme=DARK)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()


def test_a_failed_drawing_leaves_no_half_file(tmp_path, monkeypatch):
    recording = read_recording(runs.write_run(tmp_path / "run", steps=5, eval_every=0))
    (tmp_path / "loss.png").write_bytes(b"the old one")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", _fail)
    with pytest.raises(OSError, match="no space"):
        draw_loss(recording, tmp_path / "loss.png", headline="x")
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["loss.png"]
    assert (tmp_path / "loss.png").read_bytes() == b"the old one"


def _fail(self, path, **_):
    path.write_bytes(b"half")
    raise OSError("no space left on device")


def test_drawing_touches_no_global_state_of_matplotlib(tmp_path):
    before = dict(matplotlib.rcParams)
    recording = read_recording(runs.write_run(tmp_path / "run", steps=5, eval_every=0))
    draw_loss(recording, tmp_path / "loss.svg", headline="x")
    assert dict(matplotlib.rcParams) == before


def test_ticks_and_labels_tell_what_is_shown(tmp_path):
    recording = read_recording(
        runs.write_run(tmp_path / "run", steps=400, eval_every=100, findings=(runs.PLATEAU,))
    )
    marks = [Mark.of(finding) for finding in recording.findings]
    # Text as text, so that it can be read back.
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        draw_loss(recording, tmp_path / "loss.svg", headline="Seen", marks=marks)
        draw_grads(recording, tmp_path / "grads.svg", headline="Reached", marks=marks)
    loss = re.findall(r">([^<>\n]+)</text>", (tmp_path / "loss.svg").read_text())
    grads = re.findall(r">([^<>\n]+)</text>", (tmp_path / "grads.svg").read_text())
    assert "ln 680 = 6.52: every token equally likely" in loss
    assert any(text.startswith("shuffled images ") for text in loss)
    assert "step 410: the answers are the same when the images are exchanged" in loss
    assert "minivlm:tiny on digits, 400 steps" in loss
    assert "Gradient norm by layer: model.language_model.layers" in grads
    assert {"layer 0", "layer 1", "layer 2", "layer 3"} <= set(grads)
    assert any(text.startswith("projector 0.") for text in grads)


def test_a_torn_last_line_is_passed_over(tmp_path):
    folder = runs.write_run(tmp_path, steps=10, eval_every=0)
    with (folder / "run.jsonl").open("a") as rows:
        rows.write('{"event": "step", "step": 10, "los')
    recording = read_recording(folder)
    assert recording.last_step == 9
    assert recording.broken_lines == 1


def test_steps_repeated_after_a_resume_count_once_and_the_later_row_wins(tmp_path):
    folder = runs.write_run(tmp_path, steps=10, eval_every=0)
    with (folder / "run.jsonl").open("a") as rows:
        rows.write('{"event": "step", "step": 8, "loss": 42.0}\n{"event": "step", "step": 10, "loss": 43}\n')
    loss = read_recording(folder).column("loss")
    assert loss.steps.tolist() == list(range(11))
    assert loss.values[[8, 10]].tolist() == [42.0, 43.0]


def test_numbers_that_json_cannot_hold_are_read_from_words(tmp_path):
    (tmp_path / "run.jsonl").write_text(
        '{"event": "step", "step": 0, "loss": "nan"}\n{"event": "step", "step": 1, "loss": Infinity}\n'
        '{"event": "step", "step": 2, "loss": "-inf", "note": "a word", "flag": true}\n'
    )
    recording = read_recording(tmp_path)
    values = recording.column("loss").values
    assert math.isnan(values[0]) and values[1] == math.inf and values[2] == -math.inf
    assert set(recording.columns) == {"loss"}


def test_a_folder_without_a_run_is_the_users_error(tmp_path):
    with pytest.raises(UserError, match=r"holds no recorded run"):
        read_recording(tmp_path)


def test_summaries_keep_short_series_and_bound_long_ones():
    short = Series(np.arange(10), np.arange(10.0))
    assert summarise(short)[2].tolist() == short.values.tolist()
    steps, low, middle, high = summarise(
        Series(np.arange(50_000), np.tile([0.0, 1.0, 2.0, 3.0, 4.0], 10_000))
    )
    assert len(steps) == MOST_POINTS
    assert (low < middle).all() and (middle < high).all()


def test_smoothing_keeps_the_first_value_and_ignores_a_spike():
    values = np.ones(400)
    values[0], values[200] = 6.5, 1e6
    smoothed = smooth(values)
    assert smoothed[0] == 6.5
    assert smoothed[100:].max() < 1.001


def test_heat_cells_never_average_infinity_or_nan_away():
    steps = np.arange(0, 5000, 5)
    values = np.full(len(steps), 0.1)
    values[500] = math.nan
    table = cells([(0, Series(steps, values)), (1, Series(steps[:300], values[:300]))], 5000)
    assert table.norms.shape == (2, MOST_COLUMNS)
    assert np.isinf(table.norms[0]).sum() == 1
    assert np.isnan(table.norms[1][-1]), "nothing was sampled there"


def test_labels_at_the_end_of_curves_do_not_overlap():
    figure = new_figure(4, DARK)
    axes = figure.add_axes((0.1, 0.1, 0.7, 0.8))
    axes.set_ylim(0, 1)
    label_ends(axes, [(0.5, str(i), "black") for i in range(5)])
    heights = sorted(text.get_position()[1] for text in axes.texts)
    assert min(b - a for a, b in itertools.pairwise(heights)) > 0.055
