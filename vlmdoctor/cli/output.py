"""The options that every examining command shares, and the delivery of a report."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from vlmdoctor import reporters, settings, streams
from vlmdoctor.cli.completion import complete_formats, complete_rules
from vlmdoctor.errors import UserError
from vlmdoctor.output_file import write_whole
from vlmdoctor.plain_text import plain_line
from vlmdoctor.report import Report
from vlmdoctor.rulebook import Rule, renamed, select_rules

RULES = "Rules"
OUTPUT = "Output"
FAIL_ON = ("error", "warning", "never")


@dataclass(frozen=True)
class OutputOptions:
    """Which rules run, how the report looks, where it goes, and what fails.

    Attributes:
        select, extend_select, ignore: Rule selectors, as in `vlmdoctor.rulebook.select_rules`.
        output_format: The name of a reporter.
        output_file: Where the report is written; None for standard output.
        fail_on: The least severity that fails: `error`, `warning` or `never`.
        exit_zero: Exit with 0 even where there are findings.
        quiet: Print findings only.
        verbose: Print what did not run and why, and tracebacks.
    """

    select: tuple[str, ...] = ()
    extend_select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    output_format: str = "full"
    output_file: Path | None = None
    fail_on: str = "error"
    exit_zero: bool = False
    quiet: bool = False
    verbose: bool = False

    def rules(self, defaults: Iterable[Rule]) -> list[Rule]:
        """The rules to run, where `defaults` are the command's own."""
        for old, new in renamed((*self.select, *self.extend_select, *self.ignore)).items():
            _note(f"vlmdoctor: {old} was renamed to {new}.")
        return select_rules(defaults, self.select, self.extend_select, self.ignore)


@functools.cache  # a command may ask for its rules more than once
def _note(text: str) -> None:
    print(text, file=sys.stderr)


def _shared(
    select: Annotated[
        list[str] | None,
        typer.Option(
            help="Run only these rules: names, codes, prefixes such as GRAD, or ALL.",
            metavar="RULE",
            autocompletion=complete_rules,
            rich_help_panel=RULES,
        ),
    ] = None,
    extend_select: Annotated[
        list[str] | None,
        typer.Option(
            help="Run these rules as well.",
            autocompletion=complete_rules,
            metavar="RULE",
            rich_help_panel=RULES,
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave these rules out.",
            autocompletion=complete_rules,
            metavar="RULE",
            rich_help_panel=RULES,
        ),
    ] = None,
    output_format: Annotated[
        str | None,
        typer.Option(
            help=f"One of: {', '.join(reporters.names())}.",
            autocompletion=complete_formats,
            metavar="FORMAT",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    output_file: Annotated[
        Path | None,
        typer.Option(help="Write the report here instead of to standard output.", rich_help_panel=OUTPUT),
    ] = None,
    fail_on: Annotated[
        str | None,
        typer.Option(
            help=f"Exit with 1 from this severity on: {', '.join(FAIL_ON)}.",
            metavar="SEVERITY",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit with 0 in spite of findings.", rich_help_panel=OUTPUT)
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print findings only.", rich_help_panel=OUTPUT)
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose", "-v", help="Print what did not run, and tracebacks.", rich_help_panel=OUTPUT
        ),
    ] = False,
) -> OutputOptions:
    configured = settings.load()
    chosen_format = output_format or configured.output_format or "full"
    chosen_fail_on = fail_on or configured.fail_on or "error"
    reporters.reporter(chosen_format)
    if chosen_fail_on not in FAIL_ON:
        raise UserError(f"--fail-on can't be '{chosen_fail_on}'; choose one of {', '.join(FAIL_ON)}.")
    return OutputOptions(
        select=tuple(select or configured.select),
        extend_select=tuple(extend_select or configured.extend_select),
        ignore=tuple(ignore or configured.ignore),
        output_format=chosen_format,
        output_file=output_file,
        fail_on=chosen_fail_on,
        exit_zero=exit_zero,
        quiet=quiet,
        verbose=verbose,
    )


def with_output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives `command`, which takes `output: OutputOptions`, the shared options on the command line."""
    own = inspect.signature(command, eval_str=True).parameters
    shared = inspect.signature(_shared, eval_str=True).parameters

    @functools.wraps(command)
    def wrapper(**values: Any) -> Any:
        output = _shared(**{name: values.pop(name) for name in shared})
        return command(**values, output=output)

    parameters = [p.replace(kind=p.KEYWORD_ONLY) for name, p in own.items() if name != "output"]
    parameters += [p.replace(kind=p.KEYWORD_ONLY) for p in shared.values()]
    wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapper


def options_of(output: OutputOptions) -> list[str]:
    """What differs from the defaults, as it is typed: for a command that a person is to paste."""
    words = []
    for name in ("select", "extend_select", "ignore"):
        for selector in getattr(output, name):
            words += [f"--{name.replace('_', '-')}", selector]
    words += [] if output.output_format == "full" else ["--output-format", output.output_format]
    words += [] if output.output_file is None else ["--output-file", str(output.output_file)]
    words += [] if output.fail_on == "error" else ["--fail-on", output.fail_on]
    given = {"--exit-zero": output.exit_zero, "--quiet": output.quiet, "--verbose": output.verbose}
    return words + [option for option, chosen in given.items() if chosen]


def render(report: Report, output: OutputOptions) -> str:
    """The report in the chosen format, coloured only where a person reads it."""
    from rich.console import Console

    console = Console()
    to_terminal = output.output_file is None
    return reporters.reporter(output.output_format).render(
        report,
        color=to_terminal and console.is_terminal and not console.no_color,
        verbose=output.verbose,
        quiet=output.quiet,
        width=console.width if to_terminal and console.is_terminal else 100,
    )


def deliver(report: Report, output: OutputOptions) -> NoReturn:
    """Prints or writes the report and exits with its status."""
    text = render(report, output)
    if output.output_file is None:
        streams.write_report(text, commands=output.output_format == "github")
    else:
        write_whole(output.output_file, text)
    raise typer.Exit(exit_status(report, output))


def exit_status(report: Report, output: OutputOptions) -> int:
    """The report's status; `--exit-zero` forgives findings, but not that a check could not run."""
    status = report.exit_status
    return 0 if output.exit_zero and status == 1 else status


@contextmanager
def progress_line(shown: bool) -> Iterator[Callable[[str], None]]:
    """One line on standard error that says what is being done, and is gone afterwards."""

    def progress(what: str) -> None:
        if shown:
            print(f"\r\033[K{plain_line(what, 200)} …", end="", file=sys.stderr, flush=True)

    try:
        yield progress
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
