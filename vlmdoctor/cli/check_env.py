"""`vlmdoctor check-env`: is this machine able to train, and will torch see its GPUs?"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmdoctor.cli.output import OutputOptions, deliver, progress_line, with_output_options
from vlmdoctor.errors import UserError
from vlmdoctor.output_file import write_whole
from vlmdoctor.plain_text import plain_line

if TYPE_CHECKING:
    from vlmdoctor.evidence.environment import Environment
    from vlmdoctor.evidence.source import Source
    from vlmdoctor.finding import Finding
    from vlmdoctor.probes.machine.nvml import Question
    from vlmdoctor.report import Report
    from vlmdoctor.reporters.machine import Section
    from vlmdoctor.rulebook import Rule

# Parameters that are taken as they were typed, which spares Typer's converters (see `cli.quick`).
TEXTS = (
    *("paths", "require", "from_", "save", "diff"),
    *("select", "extend_select", "ignore", "output_format", "fail_on"),
)


EXAMPLES = (
    ("vlmdoctor check-env", "This machine; torch is not needed."),
    ("vlmdoctor check-env train.py job.sbatch", "And what hides GPUs in these files."),
    ("vlmdoctor check-env --require 2-gpus,bf16,vram=40GB", "A gate for a job."),
)


@with_output_options
def command(
    output: OutputOptions,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            help="Files and folders to search for settings that hide GPUs, or come too late: Python, "
            "notebooks, shell and batch scripts, Dockerfiles, compose and .env files.",
        ),
    ] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="Fail unless the machine has it: gpu, 2-gpus, bf16, vram=40GB, disk=200GB, memory=64GB, "
            "cuda=12.8 and so on; several with commas.",
        ),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Start CUDA as well, in a process of its own.")
    ] = False,
    save: Annotated[str | None, typer.Option(metavar="FILE", help="Write the snapshot as JSON.")] = None,
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FILE",
            help="Judge this instead of the machine: a saved snapshot, a report of torch's or vLLM's "
            "collect_env, or the output of 'nvidia-smi -q -x'.",
        ),
    ] = None,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="A B", help="Say what differs between two of those files."),
    ] = None,
    paste: Annotated[
        bool, typer.Option("--paste", help="Print a block for an issue, without names, hosts and tokens.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="How long to wait for the driver's answer.")
    ] = 30.0,
) -> None:
    """Check the machine and, with PATH, what hides the GPUs; torch is not imported."""
    if diff is not None:
        _differences(Path(diff[0]), Path(diff[1]))
    started = time.perf_counter()
    from vlmdoctor.evidence.demands import parse

    demands = parse(require) if require else None
    if from_ is not None and live:
        raise UserError("--live asks this machine and can't be combined with --from.")
    full = output.output_format == "full" and output.output_file is None and not output.quiet and not paste
    # The driver is asked first and listened to last, so that its process starts while the rules are loaded.
    with _question() if from_ is None else contextlib.nullcontext() as question:
        rules = _own_rules(demands is not None)
        if output.select or output.extend_select or output.ignore:
            rules = output.rules(rules)
        if question is None:
            from vlmdoctor.probes.machine.saved import load

            environment = load(Path(from_ or ""))
        else:
            with progress_line(full and sys.stderr.isatty()) as progress:
                progress("asking the driver")
                environment = _look(question, live, timeout)
    given: list[object] = [environment, *([demands] if demands else [])]
    source = None
    if paths:
        from vlmdoctor.probes.source.scan import scan

        source = scan([Path(path) for path in paths])
        given.append(source)
    report = _judged(rules, given, output.fail_on, paths, environment)
    if save is not None:
        from vlmdoctor.probes.machine.saved import as_json

        write_whole(Path(save), as_json(environment))
    report = dataclasses.replace(report, seconds=time.perf_counter() - started)
    if paste:
        _paste(environment, report)
    _Printer(full, output.verbose).machine(environment, source, report)
    deliver(report, output)


def _own_rules(with_demands: bool) -> list[Rule]:
    from vlmdoctor.evidence.demands import Demands
    from vlmdoctor.evidence.environment import Environment
    from vlmdoctor.evidence.source import Source
    from vlmdoctor.rulebook import answerable, rules_in

    given = {Environment, Source, *((Demands,) if with_demands else ())}
    # Importing the rules about models, which need none of this, would take longer than all of it.
    return answerable(given, rules_in("env", "src"))


def _question() -> Question:
    from vlmdoctor.probes.machine.nvml import Question

    return Question()


def _look(question: Question, live: bool, timeout: float) -> Environment:
    """This machine's snapshot: files are read while the driver is still being asked."""
    from vlmdoctor.probes.machine.nvml import merged
    from vlmdoctor.probes.machine.snapshot import snapshot

    environment = merged(snapshot(), question.answer(timeout))
    if live:
        from vlmdoctor.probes.machine.live import with_live

        environment = with_live(environment)
    return environment


def _judged(
    rules: list[Rule],
    given: Iterable[object],
    fail_on: str,
    paths: Sequence[str] | None,
    environment: Environment,
) -> Report:
    from vlmdoctor.engine import Gatherer, judge
    from vlmdoctor.evidence.source import Source

    given = list(given)
    source = next((evidence for evidence in given if isinstance(evidence, Source)), None)
    facts = facts_of(environment)
    if source is not None:
        facts |= {"files": source.files, "unread": source.unread}
    where = "this machine" if environment.origin == "this machine" else environment.origin
    report = judge(
        rules,
        Gatherer(None, given),
        command="check-env",
        target=" ".join(paths or ()) or where,
        fail_on=fail_on,
        facts=facts,
    )
    plain = {"no source evidence was given": "no files were given to search"}
    skipped = tuple((name, plain.get(reason, reason)) for name, reason in report.skipped)
    return dataclasses.replace(report, skipped=skipped)


def facts_of(environment: Environment) -> dict[str, Any]:
    """The snapshot as the report's facts."""
    from vlmdoctor.probes.machine.saved import plain_facts

    return {
        "python": environment.python,
        "platform": environment.platform,
        "cpus": environment.cpus,
        "variables": dict(environment.variables),
        "packages": dict(environment.packages),
        "torch_cuda": environment.torch_cuda,
        "gpus": list(environment.names),
        "driver": environment.driver.version if environment.driver else None,
        "other_accelerator": environment.other_accelerator,
        "snapshot": plain_facts(environment),
    }


class _Printer:
    """Prints the verdict and the card of the machine, before the report prints the findings."""

    def __init__(self, wanted: bool, verbose: bool) -> None:
        self.wanted = wanted
        self.verbose = verbose

    def machine(self, environment: Environment, source: Source | None, report: Report) -> None:
        """The verdict, each section, and what was not looked at."""
        if not self.wanted:
            return
        from rich.console import Console
        from rich.text import Text

        from vlmdoctor.reporters.machine import device_sections, source_section, static_sections
        from vlmdoctor.reporters.machine_verdict import verdict_of

        self.console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        verdict = verdict_of(environment, report.findings, report.why_incomplete)
        self.console.print(Text(verdict.line, verdict.style))
        self.console.print()
        if environment.origin != "this machine":
            self.console.print(plain_line(f"Judged from {environment.origin}, not from this machine."))
        sections = [*static_sections(environment), *device_sections(environment)]
        sections += [source_section(source)] if source is not None else []
        self._print(sections, report.findings)
        reasons = Counter(reason for _, reason in report.skipped)
        for reason, count in reasons.items():
            checks = "1 check" if count == 1 else f"{count} checks"
            self.console.print(plain_line(f"[-] skipped, {reason}: {checks}"), style="dim")
        self.console.print()

    def _print(self, sections: Iterable[Section], findings: Iterable[Finding]) -> None:
        from rich.text import Text

        for section in sections:
            mark, word, style = section.mark(findings)
            # A mark and, where something is the matter, a word: colour is never the only carrier.
            note = f" ({word})" if word not in ("ok", "note") else ""
            self.console.print(Text.assemble((mark, style), f" {section.title}{note}: {section.line}"))
            if self.verbose:
                for line in section.details:
                    self.console.print(Text(f"      {line}", style="dim"))


def _differences(before: Path, after: Path) -> None:
    from vlmdoctor.probes.machine.difference import differences
    from vlmdoctor.probes.machine.saved import load

    first, second = load(before), load(after)
    found = differences(first, second)
    for what, one, other in found:
        typer.echo(plain_line(what))
        typer.echo(f"    {plain_line(str(before))}: {plain_line(one)}")
        typer.echo(f"    {plain_line(str(after))}: {plain_line(other)}")
    hidden = sorted({*first.unseen, *second.unseen} - {"live", "nvml"})
    if hidden:
        names = plain_line(", ".join(hidden))
        typer.echo(f"not compared, since one of the two does not show it: {names}")
    typer.echo("no difference" if not found else f"{len(found)} difference{'s' if len(found) > 1 else ''}")
    raise typer.Exit(1 if found else 0)


def _paste(environment: Environment, report: Report) -> None:
    from vlmdoctor import __version__
    from vlmdoctor.probes.machine.redaction import redacted
    from vlmdoctor.reporters.machine import device_sections, static_sections

    lines = [f"vlmdoctor {__version__} check-env", ""]
    for section in (*static_sections(environment), *device_sections(environment)):
        lines.append(f"{section.mark(report.findings)[0]} {section.title}: {section.line}")
        lines += [f"      {detail}" for detail in section.details]
    lines += ["", *(f"{f.severity}: {f.message} [{f.rule} {f.code}]" for f in report.findings)]
    typer.echo("Copy and paste the text below into your issue.\n")
    typer.echo("```text\n" + redacted("\n".join(lines)).replace("```", "'''") + "\n```")
    raise typer.Exit(report.exit_status)
