"""What is printed at the end of a run, and which command shows more."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.text import Text

from minivlm.program import started_as
from vlmdoctor.cli.output import OutputOptions, render
from vlmdoctor.output_file import write_whole
from vlmdoctor.plain_text import plain_line
from vlmdoctor.report import Report
from vlmdoctor.runs.verdict import LearningSummary


def present(
    report: Report,
    output: OutputOptions,
    summary: LearningSummary | None,
    folder: Path,
    *,
    ask: str | None = None,
) -> None:
    """Prints what was learned, the report, and where everything is.

    Standard output carries the report in the chosen format and nothing else, so that programs can read
    it; only the format for people has the words around it there.
    """
    before, after = (_printed(lines, sys.stderr) for lines in (_opening(summary), _closing(folder, ask)))
    text = render(report, output)
    if output.output_file is not None:
        write_whole(output.output_file, text)
        text = f"  report  {output.output_file}\n"
    elif output.output_format == "full":
        before, after = (_printed(lines, sys.stdout) for lines in (_opening(summary), _closing(folder, ask)))
        if output.quiet:
            before = after = ""
        sys.stdout.write(f"{before}{text}{after}")
        sys.stdout.flush()
        return
    if not output.quiet:
        sys.stderr.write(before + after)
        sys.stderr.flush()
    sys.stdout.write(text if output.output_file is None else "")
    sys.stdout.flush()


def _opening(summary: LearningSummary | None) -> list[RenderableType]:
    """What was learned."""
    if summary is None:
        return []
    style = {True: "bold green", False: "bold yellow", None: "bold"}[summary.uses_images]
    sentences = [Padding(Text(sentence), (0, 0, 0, 2)) for sentence in summary.sentences]
    return [Text(summary.headline, style), *sentences, Text()]


def _closing(folder: Path, ask: str | None) -> list[RenderableType]:
    """Where the files are, and what to type next."""
    rows = []
    if (folder / "report.html").exists():
        rows.append(("report", str(folder / "report.html")))
    plots = [str(folder / name) for name in ("loss.png", "grads.png") if (folder / name).exists()]
    if plots:
        rows.append(("plots", "  ".join(plots)))
    rows.append(("rows", str(folder / "run.jsonl")))
    if ask:
        rows.append(("next", ask))
    return [Text(), *(Text.assemble((f"  {label:<7} ", "dim"), plain_line(value)) for label, value in rows)]


def next_command(folder: Path, examples: Sequence[Mapping[str, Any]]) -> str | None:
    """The command that asks the trained model about a picture; None where it has not learned to answer."""
    asked = next((one for one in examples if one.get("image") and one.get("question")), None)
    if asked is None:
        return None
    image = shlex.quote(str(folder / str(asked["image"])))
    question = shlex.quote(str(asked["question"]))
    program = shlex.join(started_as("minivlm"))
    return f"{program} generate {shlex.quote(str(folder))} {question} --image {image}"


def _printed(lines: Sequence[RenderableType], stream: TextIO) -> str:
    """The lines as text that suits the stream; paths and commands are never broken over lines."""
    terminal = Console(file=stream)
    color = terminal.is_terminal and not terminal.no_color
    text = io.StringIO()
    console = Console(
        file=text,
        width=terminal.width if terminal.is_terminal else 100,
        force_terminal=color,
        color_system="auto" if color else None,
        no_color=not color,
        highlight=False,
        emoji=False,
    )
    for line in lines:
        console.print(line, soft_wrap=isinstance(line, Text))
    return "\n".join(line.rstrip() for line in text.getvalue().split("\n"))
