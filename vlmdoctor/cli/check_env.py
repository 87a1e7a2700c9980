"""`vlmdoctor check-env`: is this machine able to train, and will torch see its GPUs?"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmdoctor.cli.output import OutputOptions, deliver, with_output_options

if TYPE_CHECKING:
    from vlmdoctor.evidence.environment import Environment
    from vlmdoctor.evidence.source import Source


@with_output_options
def command(
    output: OutputOptions,
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[PATH]...",
            help="Files and folders to search for settings that hide GPUs: Python, notebooks, shell scripts, "
            "Dockerfiles, .env files.",
        ),
    ] = None,
) -> None:
    """Check the machine and, with PATH, who hid its GPUs; torch is not imported."""
    from vlmdoctor.engine import Gatherer, judge
    from vlmdoctor.evidence.environment import Environment, snapshot
    from vlmdoctor.evidence.source import Source, scan
    from vlmdoctor.rulebook import all_rules

    started = time.perf_counter()
    environment = snapshot()
    given: list[object] = [environment]
    source = scan(paths) if paths else None
    if source is not None:
        given.append(source)
    own = [
        rule
        for rule in all_rules()
        if {needed for needed, _ in rule.requirements.values()} <= {Environment, Source}
    ]
    facts = {**vars(environment)}
    if source is not None:
        facts |= {"files": source.files, "unread": source.unread}
    report = judge(
        output.rules(own),
        Gatherer(None, given),
        command="check-env",
        target=" ".join(str(path) for path in paths or ()) or "this machine",
        fail_on=output.fail_on,
        facts=facts,
    )
    report = dataclasses.replace(report, seconds=time.perf_counter() - started)
    if output.output_format == "full" and output.output_file is None and not output.quiet:
        for line in statement(environment, source):
            typer.echo(line)
        typer.echo()
    deliver(report, output)


def statement(environment: Environment, source: Source | None) -> list[str]:
    """What the machine is, in a few plain lines."""
    versions = environment.packages
    cores = "1 core" if environment.cpus == 1 else f"{environment.cpus} cores"
    lines = [f"Python {environment.python} on {environment.platform}, {cores}"]
    if "torch" in versions:
        built = f"for CUDA {environment.torch_cuda}" if environment.torch_cuda else "without CUDA"
        others = [f"{name} {version}" for name, version in versions.items() if name != "torch"]
        lines.append(", ".join([f"torch {versions['torch']} (built {built})", *others]))
    else:
        lines.append("torch is not installed")
    if environment.gpus:
        driver = f", driver {environment.driver}" if environment.driver else ""
        lines.append(f"{len(environment.gpus)} NVIDIA GPU(s): {', '.join(environment.gpus)}{driver}")
    elif environment.other_accelerator:
        lines.append(f"no NVIDIA GPU here, but {environment.other_accelerator}, which is not examined")
    else:
        lines.append("no GPU here: training runs on the CPU")
    if source is not None:
        files = "1 file" if source.files == 1 else f"{source.files} files"
        unread = f", {len(source.unread)} of them unreadable" if source.unread else ""
        lines.append(f"{files} searched for settings that hide GPUs{unread}")
    return lines
