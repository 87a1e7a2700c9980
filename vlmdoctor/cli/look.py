"""`vlmdoctor look TARGET`: what the model is really given, token by token and image by image."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer

from vlmdoctor import settings
from vlmdoctor.cli.completion import complete_targets
from vlmdoctor.errors import UserError
from vlmdoctor.streams import write_report

FORMATS = ("full", "json", "html")


EXAMPLES = (
    ("vlmdoctor look minivlm", "Four samples of the bundled data."),
    ("vlmdoctor look train.py:build --output-format html --output-file look.html", "A page of your own."),
)


def command(
    target: Annotated[
        str,
        typer.Argument(
            help="minivlm[:preset], a folder with tokenizer files, package.module:factory or "
            "path/to/file.py:factory.",
            metavar="TARGET",
            autocompletion=complete_targets,
        ),
    ] = "minivlm",
    samples: Annotated[int, typer.Option(min=1, max=64, help="How many samples to draw.")] = 4,
    output_format: Annotated[
        str, typer.Option(help=f"One of: {', '.join(FORMATS)}.", metavar="FORMAT")
    ] = "full",
    output_file: Annotated[
        Path | None, typer.Option(help="Write it here instead of to standard output.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the checkpoint's own code run.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print tracebacks.")] = False,
) -> None:
    """See what the model is given: who speaks each token, which tokens are supervised, and the images."""
    if output_format not in FORMATS:
        raise UserError(f"there is no output format '{output_format}'; choose one of {', '.join(FORMATS)}.")
    from vlmdoctor.look.target import subject_to_look_at

    with redirect_stdout(sys.stderr):  # what the user's code prints would get into the picture
        subject = subject_to_look_at(target, trust_remote_code)
        settings.load().fill(subject)
        from vlmdoctor.look.samples import looks_of

        looks, data = looks_of(subject, samples)
    if output_format == "full":
        from rich.console import Console

        from vlmdoctor.look import terminal

        console = Console()
        shown = output_file is None and console.is_terminal
        text = terminal.render(
            looks, data, target, color=shown and not console.no_color, width=console.width if shown else 100
        )
    elif output_format == "html":
        from vlmdoctor.look import page

        text = page.render(looks, data, target)
    else:
        from vlmdoctor.look import document

        text = document.render(looks, data, target)
    from vlmdoctor.output_file import write_whole

    if output_file is None:
        write_report(text, commands=False)
    else:
        write_whole(output_file, text)
