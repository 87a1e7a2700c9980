"""`vlmdoctor check TARGET`: is this model wired so that it can learn?"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmdoctor.cli.output import OutputOptions, deliver, with_output_options
from vlmdoctor.errors import UserError

if TYPE_CHECKING:
    from vlmdoctor.report import Report
    from vlmdoctor.rulebook import Rule
    from vlmdoctor.subject import Subject


@with_output_options
def command(
    target: Annotated[
        str,
        typer.Argument(
            help="minivlm[:preset], a folder with config.json, package.module:factory or "
            "path/to/file.py:factory."
        ),
    ],
    output: OutputOptions,
    depth: Annotated[
        str | None,
        typer.Option(help="How deep to go: static, forward, backward, steps. Default: as deep as possible."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Move model and batch there first, such as cpu or cuda.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(min=0, help="Start no further probe after so long.", metavar="SECONDS"),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the checkpoint's own code run.")
    ] = False,
) -> None:
    """Examine a model before a long run: is it wired so that it can learn?"""
    if depth == "shapes":
        raise UserError("--depth shapes is not there yet; choose static, forward, backward or steps.")
    started = time.perf_counter()
    # What the user's code prints would spoil the report.
    with _progress_line(sys.stderr.isatty() and not output.quiet) as progress, redirect_stdout(sys.stderr):
        report = _examine(target, output, depth, device, budget, trust_remote_code, progress)
    deliver(dataclasses.replace(report, seconds=time.perf_counter() - started), output)


def _examine(
    target: str,
    output: OutputOptions,
    depth: str | None,
    device: str | None,
    budget: float | None,
    trust_remote_code: bool,
    progress: Callable[[str], None],
) -> Report:
    from vlmdoctor import settings
    from vlmdoctor.evidence.raised import shown_path
    from vlmdoctor.evidence.source import Source, kind_of, scan
    from vlmdoctor.examine import examine, model_rules
    from vlmdoctor.rulebook import all_rules
    from vlmdoctor.target import resolve

    rules, given = model_rules(), []
    output.rules(rules)  # a misspelt rule is told before the model is built
    progress("building the model")
    resolved = resolve(target, trust_remote_code=trust_remote_code)
    if resolved.subject.contract is None:
        resolved.subject.contract = settings.load().contract
    if device is not None:
        _move(resolved.subject, device)
    if resolved.file is not None and kind_of(resolved.file) == "python":
        given.append(scan([Path(shown_path(str(resolved.file)))]))
        rules += [rule for rule in all_rules() if _needs_only(rule, Source)]
    return examine(
        resolved.subject,
        target=target,
        rules=output.rules(rules),
        depth=depth,
        budget=budget,
        fail_on=output.fail_on,
        progress=progress,
        given=given,
        facts=resolved.facts,
        missing_batch=resolved.missing_batch,
    )


@contextmanager
def _progress_line(shown: bool) -> Iterator[Callable[[str], None]]:
    """One line on standard error that says what is being done, and is gone afterwards."""

    def progress(what: str) -> None:
        if shown:
            print(f"\r\033[K{what} …", end="", file=sys.stderr, flush=True)

    try:
        yield progress
    finally:
        if shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _needs_only(rule: Rule, evidence_class: type) -> bool:
    return all(needed is evidence_class for needed, _ in rule.requirements.values())


def _move(subject: Subject, device: str) -> None:
    import torch

    from vlmdoctor.invoke import moved

    try:
        place = torch.device(device)
        subject.model.to(place)
        subject.batch = moved(subject.batch, place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} can't be used here: {str(error).splitlines()[0]}.") from error
