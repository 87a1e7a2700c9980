"""What a finished run leaves behind for people: plots, report.html, and the verdict in summary.json."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmdoctor.finding import plain
from vlmdoctor.output_file import write_whole
from vlmdoctor.report import Report
from vlmdoctor.runs.verdict import LearningSummary, verdict

if TYPE_CHECKING:
    from vlmdoctor.runs.columns import Recording


def summarise(recording: Recording) -> LearningSummary:
    """What the model learned in the run."""
    losses = recording.column("loss").values.tolist()
    return verdict(
        recording.summary,
        losses=losses,
        steps=0 if recording.last_step is None else recording.last_step + 1,
        total=recording.total_steps,
        finished=bool(recording.end.get("finished")),
    )


def read_summary(folder: Path) -> LearningSummary:
    """What the model learned in the run of a folder."""
    from vlmdoctor.runs.columns import read_recording

    return summarise(read_recording(folder))


def publish(
    folder: Path,
    report: Report,
    complain: Callable[[str], None],
    *,
    environment: Mapping[str, Any] | None = None,
) -> LearningSummary | None:
    """Writes summary.json's verdict, loss.png, grads.png and report.html.

    Each is tried by itself: a run is never lost, nor its exit status changed, because a picture could not be
    drawn. What failed is reported to `complain` in one sentence. `environment` is noted in the summary.

    Returns:
        What was learned; None where the recording itself could not be read.
    """
    try:
        from vlmdoctor.runs.columns import read_recording

        recording = read_recording(folder)
        learned = summarise(recording)
        recording = _with_verdict(recording, report, learned, environment)
    except Exception as error:
        complain(f"{folder} could not be read back, so there are no plots and no report: {_said(error)}")
        return None
    jobs: tuple[tuple[str, Callable[[], None]], ...] = (
        ("summary.json", lambda: _write_summary(recording)),
        ("loss.png and grads.png", lambda: _draw(recording, report, learned)),
        ("report.html", lambda: _write_page(recording, report, learned)),
    )
    for what, job in jobs:
        try:
            job()
        except Exception as error:
            complain(f"{what} could not be made: {_said(error)}")
    return learned


def _said(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith(".") else f"{text}."


def _with_verdict(
    recording: Recording, report: Report, learned: LearningSummary, environment: Mapping[str, Any] | None
) -> Recording:
    added: dict[str, Any] = {
        "verdict": report.verdict,
        "learned": learned.headline,
        "findings": [finding.to_dict() for finding in report.findings],
    }
    added |= {"environment": dict(environment)} if environment else {}
    wanted = recording.info.get("required_accuracy")
    added |= {} if wanted is None else {"required_accuracy": wanted}
    return dataclasses.replace(recording, summary={**recording.summary, **added})


def _write_summary(recording: Recording) -> None:
    text = json.dumps(plain(recording.summary), indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(recording.folder / "summary.json", text + "\n")


def _draw(recording: Recording, report: Report, learned: LearningSummary) -> None:
    from vlmdoctor.runs.plots.grads import draw_grads
    from vlmdoctor.runs.plots.loss import draw_loss
    from vlmdoctor.runs.plots.marks import Mark

    marks = [Mark.of(finding) for finding in report.findings]
    draw_loss(recording, recording.folder / "loss.png", headline=learned.headline, marks=marks)
    if not draw_grads(
        recording, recording.folder / "grads.png", headline=grads_headline(recording), marks=marks
    ):
        (recording.folder / "grads.png").unlink(missing_ok=True)


def _write_page(recording: Recording, report: Report, learned: LearningSummary) -> None:
    from vlmdoctor.runs.page import page
    from vlmdoctor.runs.plots.grads import draw_grads
    from vlmdoctor.runs.plots.loss import draw_loss
    from vlmdoctor.runs.plots.marks import Mark
    from vlmdoctor.runs.plots.style import DARK, LIGHT

    marks = [Mark.of(finding) for finding in report.findings]
    plots: dict[str, dict[str, Path]] = {"Loss and answers": {}, "Gradients": {}}
    with tempfile.TemporaryDirectory(prefix="vlmdoctor-") as scratch:
        for theme in (LIGHT, DARK):
            loss, grads = (Path(scratch) / f"{what}-{theme.name}.svg" for what in ("loss", "grads"))
            draw_loss(recording, loss, headline=learned.headline, marks=marks, theme=theme)
            plots["Loss and answers"][theme.name] = loss
            if draw_grads(recording, grads, headline=grads_headline(recording), marks=marks, theme=theme):
                plots["Gradients"][theme.name] = grads
        shown = {title: files for title, files in plots.items() if files}
        write_whole(recording.folder / "report.html", page(recording, report, learned, shown))


def grads_headline(recording: Recording) -> str:
    """Which parts a gradient reaches, in one line."""
    import numpy as np

    reached, unreached = [], []
    trainable = {p["role"] for p in recording.parameters if p["requires_grad"]}
    for role in dict.fromkeys([*recording.roles, *sorted(trainable)]):
        norms = recording.column(f"grad_norm/{role}").finite.values
        (reached if np.any(norms > 0) else unreached).append(role)
    if unreached:
        return f"No gradient reaches {_listed(unreached)}"
    if not reached:
        return "No gradient was measured"
    return f"Gradients reach {_listed(reached)}"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
