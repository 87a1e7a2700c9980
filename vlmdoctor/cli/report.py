"""`vlmdoctor report RUN`: judges a recorded run again, and draws it again."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from minivlm.newest import RECORDED, RUNS, newest_run
from vlmdoctor.cli.output import OutputOptions, exit_status, with_output_options
from vlmdoctor.errors import UserError
from vlmdoctor.plain_text import plain_line

EXAMPLES = (
    ("vlmdoctor report", "The newest run under runs/."),
    ("vlmdoctor report runs/tiny-digits --output-format json", "That one, for a program."),
)


@with_output_options
def command(
    run: Annotated[
        Path | None,
        typer.Argument(
            help="The folder of a recorded run; by default the newest one under runs/.", show_default=False
        ),
    ] = None,
    draw: Annotated[
        bool, typer.Option("--draw/--no-draw", help="Make loss.png, grads.png and report.html again.")
    ] = True,
    require_accuracy: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Fail below this share of right answers.", show_default=False),
    ] = None,
    *,
    output: OutputOptions,
) -> None:
    """Judge a recorded run: what it learned, what went wrong, since which step, and how to fix it.

    It reads the run folder only: no model, no data, no GPU. A run that goes on, or was killed, is judged too.
    """
    from vlmdoctor.cli.run_ending import next_command, present
    from vlmdoctor.runs.conclusion import judge_run, rules_for_runs
    from vlmdoctor.runs.examples import read_examples
    from vlmdoctor.runs.outputs import publish_recording, summarise
    from vlmdoctor.runs.reader import read_files

    run = run or _newest()
    files = read_files(run)
    parameters, steps = files.evidence()
    report = judge_run(
        parameters,
        steps,
        output.rules(rules_for_runs()),
        command="report",
        target=str((files.info or {}).get("target") or run),
        fail_on=output.fail_on,
        required_accuracy=require_accuracy,
    )

    def complain(sentence: str) -> None:
        print(f"vlmdoctor: {plain_line(sentence)}", file=sys.stderr)

    for note in files.notes:
        complain(f"{note}.")
    # The columns are numpy's; what can't be read has been said before it is imported.
    from vlmdoctor.runs.columns import recording_of

    recording = recording_of(files)
    learned = publish_recording(recording, report, complain) if draw else summarise(recording)
    present(report, output, learned, run, ask=next_command(run, read_examples(run)))
    raise typer.Exit(exit_status(report, output))


def _newest() -> Path:
    folder = newest_run(RECORDED)
    if folder is None:
        raise UserError(
            f"there is no recorded run under {RUNS}/; give the folder of one: vlmdoctor report FOLDER."
        )
    print(f"vlmdoctor: {plain_line(str(folder))} is the newest run under {RUNS}/.", file=sys.stderr)
    return folder
