"""`report.html` of a run: one self-contained page, verdict first."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmdoctor.knowledge.parameter_names import ROLES
from vlmdoctor.report import Report
from vlmdoctor.reporters.card import summary_line, tone, withdrawn_lines
from vlmdoctor.reporters.html import WORDS
from vlmdoctor.reporters.page_parts import card, document, escape, fold, stylesheet
from vlmdoctor.runs.columns import Recording
from vlmdoctor.runs.examples import read_examples
from vlmdoctor.runs.numbers import clock, count, number, percent
from vlmdoctor.runs.schema import UPDATE_RATIO
from vlmdoctor.runs.verdict import LearningSummary


def page(
    recording: Recording, report: Report, learned: LearningSummary, plots: Mapping[str, Mapping[str, Path]]
) -> str:
    """The page.

    Args:
        recording: The run.
        report: What the rules said of it.
        learned: What was learned.
        plots: Title of each picture -> `light` and `dark` -> the SVG or PNG file, which is put into the page.
    """
    name = str(recording.info.get("target") or recording.folder.name)
    sections = (
        _header(recording, report, learned, name),
        _tiles(recording),
        _findings(report),
        *(_figure(title, files) for title, files in plots.items()),
        "" if recording.watched else _p("Gradients were not watched, so there is no picture of them."),
        _kinds(recording.summary),
        _examples(recording),
        _parts(recording),
        _details(recording, report),
    )
    return document(f"{name}: {learned.headline}", sections, style=stylesheet())


def _header(recording: Recording, report: Report, learned: LearningSummary, name: str) -> str:
    crumbs = [f"<b>{escape(name)}</b>"]
    data = recording.config.get("data")
    crumbs += [escape(f"data: {data}")] if data else []
    crumbs += [escape(str(recording.folder))]
    created = str(recording.info.get("created") or "")[:16].replace("T", " ")
    crumbs += [escape(created)] if created else []
    sentences = "".join(_p(sentence) for sentence in learned.sentences)
    return (
        f"<header><div class='crumb'>{''.join(f'<span>{crumb}</span>' for crumb in crumbs)}</div>"
        f"<div class='verdict'><span class='pill {tone(report)}'>{WORDS[tone(report)]}</span>"
        f"<h1>{escape(learned.headline)}</h1>{sentences}</div></header>"
    )


def _tiles(recording: Recording) -> str:
    summary = recording.summary
    accuracy, shuffled, loss = (number(summary, key) for key in ("accuracy", "accuracy_shuffled", "loss"))
    gate = number(recording.info, "required_accuracy")
    tiles = []
    if accuracy is not None:
        tiles.append(("accuracy", percent(accuracy), f"required {percent(gate)}" if gate else ""))
    if shuffled is not None:
        tiles.append(
            ("accuracy (shuffled images)", percent(shuffled), "each question with another sample's image")
        )
    if loss is not None:
        tiles.append(("test loss", f"{loss:.3f}", ""))
    elif len(losses := recording.column("loss").finite):
        tiles.append(("training loss", f"{losses.values[-1]:.3f}", f"at first {losses.values[0]:.3f}"))
    if recording.last_step is not None:
        total = recording.total_steps
        done = recording.last_step + 1
        tiles.append(("steps", f"{done:,}", f"of {total:,} planned" if total and total > done else ""))
    seconds = number(recording.end, "seconds") or number(summary, "seconds")
    if seconds is not None:
        tiles.append(("time", clock(seconds), str(summary.get("device") or "")))
    speed = recording.column("tokens_per_s").finite
    if len(speed):
        middle = sorted(speed.values)[len(speed) // 2]
        tiles.append(("tokens a second", f"{middle:,.0f}", "median"))
    cells = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}"
        + (f"<small>{escape(note)}</small>" if note else "")
        + "</dd></div>"
        for label, value, note in tiles
    )
    return f"<dl class='tiles'>{cells}</dl>" if cells else ""


def _findings(report: Report) -> str:
    cards = [card(finding) for finding in report.findings]
    if not cards:
        cards.append(_p(summary_line(report)))
    cards += [_p(line) for line in withdrawn_lines(report)]
    return f"<h2>Findings</h2>{''.join(cards)}"


def _figure(title: str, files: Mapping[str, Path]) -> str:
    light = files.get("light") or next(iter(files.values()))
    media = "screen and (prefers-color-scheme: dark)"
    dark = f"<source media='{media}' srcset='{_data(files['dark'])}'>" if "dark" in files else ""
    return (
        f"<h2>{escape(title)}</h2><figure class='plot scroll' tabindex='0'><picture>"
        f"{dark}<img src='{_data(light)}' alt='{escape(title)}'></picture>"
        "</figure>"
    )


def _data(path: Path) -> str:
    kind = "image/svg+xml" if path.suffix == ".svg" else "image/png"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"


def _kinds(summary: Mapping[str, Any]) -> str:
    kinds = [key.partition("/")[2] for key in summary if key.startswith("accuracy/")]
    if not kinds:
        return ""
    rows = "".join(
        f"<tr><td>{escape(kind)}</td>{_bar(number(summary, f'accuracy/{kind}'), '')}"
        f"{_bar(number(summary, f'accuracy_shuffled/{kind}'), ' without')}</tr>"
        for kind in kinds
    )
    return (
        "<h2>Accuracy by kind of question</h2><div class='scroll'><table>"
        f"<tr><th>question</th><th>accuracy</th><th>accuracy (shuffled images)</th></tr>{rows}</table></div>"
    )


def _bar(share: float | None, style: str) -> str:
    if share is None:
        return "<td class='bar'>not measured</td>"
    filled = f"<i style='width:{100 * min(max(share, 0.0), 1.0):.1f}%'></i>"
    return f"<td class='bar'><span class='track{style}'>{filled}</span>{percent(share)}</td>"


def _examples(recording: Recording) -> str:
    rows = "".join(_example(recording.folder, example) for example in read_examples(recording.folder))
    if not rows:
        return ""
    heads = "<tr><th>picture</th><th>question</th><th>right answer</th><th>its answer</th><th></th></tr>"
    table = f"<div class='scroll'><table>{heads}{rows}</table></div>"
    return f"<h2>What it answers about unseen pictures</h2>{table}"


def _example(folder: Path, example: Mapping[str, Any]) -> str:
    question, wanted, given = (str(example.get(key) or "") for key in ("question", "answer", "prediction"))
    mark = "<span class='right'>✓ right</span>" if wanted == given else "<span class='wrong'>✗ wrong</span>"
    picture = (folder / str(example.get("image") or "")).resolve()
    # Only pictures of the run itself: a list from elsewhere must not pull other files into the page.
    ours = picture.suffix == ".png" and picture.is_relative_to(folder.resolve()) and picture.is_file()
    shown = f"<img src='{_data(picture)}' alt=''>" if ours else ""
    return f"<tr><td>{shown}</td>{_cells(question, wanted, given)}<td>{mark}</td></tr>"


def _parts(recording: Recording) -> str:
    rows = []
    for role in ROLES:
        mine = [p for p in recording.parameters if p.role == role]
        if not mine:
            continue
        total = sum(p.numel for p in mine)
        training = sum(p.numel for p in mine if p.requires_grad)
        state = (
            "trainable" if training == total else "frozen" if not training else f"{count(training)} trainable"
        )
        rates = sorted({p.lr for p in mine if p.lr is not None and p.requires_grad})
        rate = " to ".join(f"{lr:.2g}" for lr in dict.fromkeys((rates[0], rates[-1]))) if rates else ""
        moves = recording.column(UPDATE_RATIO + role).finite.values
        ratio = f"{sorted(moves)[len(moves) // 2]:.1e}" if len(moves) else ""
        rows.append(
            f"<tr><td>{role}</td><td class='number'>{total:,}</td><td class='number'>{len(mine)}</td>"
            f"<td>{escape(state)}</td><td class='number'>{rate}</td><td class='number'>{ratio}</td></tr>"
        )
    if not rows:
        return ""
    heads = (
        "<tr><th>part</th><th class='number'>parameters</th><th class='number'>tensors</th><th>state</th>"
        "<th class='number'>learning rate</th><th class='number'>median update / weights</th></tr>"
    )
    return f"<h2>Parts of the model</h2><div class='scroll'><table>{heads}{''.join(rows)}</table></div>"


def _details(recording: Recording, report: Report) -> str:
    judged = [(name, "ran") for name in report.ran]
    judged += [(name, f"skipped: {reason}") for name, reason in report.skipped]
    judged += [(name, f"crashed: {error}") for name, error in report.crashed]
    config = [(k, v) for k, v in recording.config.items() if v is not None and v != [] and v != ""]
    environment = recording.summary.get("environment")
    pieces = [
        fold("Configuration", config),
        fold("Environment", environment.items() if isinstance(environment, Mapping) else ()),
        fold(f"Checks ({len(report.ran)} ran, {len(report.skipped)} skipped)", judged),
    ]
    command = recording.info.get("command")
    if command:
        pieces.append(f"<h2>The command</h2><pre>{escape(_command(command))}</pre>")
    return "<h2>Details</h2>" + "".join(pieces)


def _command(command: object) -> str:
    return " ".join(map(str, command)) if isinstance(command, list | tuple) else str(command)


def _cells(*values: object) -> str:
    return "".join(f"<td>{escape(str(value))}</td>" for value in values)


def _p(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def files_of(folder: Path) -> Iterator[Path]:
    """The files of a run that a person would open, those that exist."""
    for name in ("report.html", "loss.png", "grads.png", "summary.json", "run.jsonl", "checkpoint"):
        if (folder / name).exists():
            yield folder / name
