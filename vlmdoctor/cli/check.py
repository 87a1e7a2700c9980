"""`vlmdoctor check TARGET`: is this model wired so that it can learn?"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated

import typer

from vlmdoctor.cli.completion import complete_depths, complete_gpus, complete_targets
from vlmdoctor.cli.output import OutputOptions, deliver, progress_line, with_output_options
from vlmdoctor.dryrun.command import DryRunOptions, dry_run, wanted
from vlmdoctor.errors import UserError
from vlmdoctor.notebook.screen import below_a_kernel
from vlmdoctor.plain_text import first_line

if TYPE_CHECKING:
    from vlmdoctor.report import Report
    from vlmdoctor.subject import Subject


DRY_RUN = "Dry run (a step at full size, without weights or a GPU)"
EXAMPLES = (
    ("vlmdoctor check minivlm", "The bundled model."),
    ("vlmdoctor check train.py:build", "Your own: `build` returns the model, or (model, batch, optimizer)."),
    ("vlmdoctor check config.json --gpu h100 --batch-size 8", "Will it fit? No weights are read."),
)


@with_output_options
def command(
    target: Annotated[
        str,
        typer.Argument(
            help="minivlm[:preset], a folder with config.json, package.module:factory or "
            "path/to/file.py:factory.",
            metavar="TARGET",
            autocompletion=complete_targets,
        ),
    ],
    output: OutputOptions,
    depth: Annotated[
        str | None,
        typer.Option(
            help="How deep to go: static, shapes (a step without weights), forward, backward, steps. "
            "Default: as deep as possible.",
            autocompletion=complete_depths,
            metavar="DEPTH",
        ),
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
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Does it fit this GPU? H100, a100-40, 'RTX 4090', 24GB, …",
            metavar="NAME",
            autocompletion=complete_gpus,
            rich_help_panel=DRY_RUN,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Samples in the batch.", rich_help_panel=DRY_RUN)
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=0, help="Images in each sample.", rich_help_panel=DRY_RUN)
    ] = None,
    seq_len: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens in each sample, with those of images.", rich_help_panel=DRY_RUN),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="Of weights: bf16, fp16 or fp32, or amp-bf16, amp-fp16 (autocast over fp32 weights). "
            "Default: the model's own.",
            rich_help_panel=DRY_RUN,
        ),
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(
            help="adamw (default), adamw-fused, adamw-8bit, adafactor, lion, sgd, …", rich_help_panel=DRY_RUN
        ),
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing", help="Recompute activations in backward.", rich_help_panel=DRY_RUN
        ),
    ] = False,
    lora: Annotated[
        int | None,
        typer.Option(
            min=1, help="LoRA of this rank on all linear layers.", metavar="RANK", rich_help_panel=DRY_RUN
        ),
    ] = None,
    freeze: Annotated[
        str | None,
        typer.Option(
            help="What does not learn: vision, projector, language, head.",
            metavar="ROLES",
            rich_help_panel=DRY_RUN,
        ),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(help="What ranks share: ddp (only the work) or fsdp2 (all).", rich_help_panel=DRY_RUN),
    ] = None,
    world_size: Annotated[
        int | None,
        typer.Option(
            min=1, help="Ranks; the result is for one of them.", metavar="N", rich_help_panel=DRY_RUN
        ),
    ] = None,
) -> None:
    """Examine a model before a long run: is it wired so that it can learn?"""
    options = DryRunOptions(
        gpu,
        batch_size,
        images,
        seq_len,
        precision,
        optimizer,
        gradient_checkpointing,
        lora,
        freeze,
        shard,
        world_size,
    )
    started = time.perf_counter()
    # What the user's code prints would get into the report.
    with progress_line(_cursor_moves() and not output.quiet) as progress, redirect_stdout(sys.stderr):
        if wanted(target, depth, options):
            from vlmdoctor.examine import model_rules

            report = dry_run(
                target,
                options,
                rules=output.rules(model_rules()),
                trust_remote_code=trust_remote_code,
                fail_on=output.fail_on,
                progress=progress,
                budget=budget,
            )
        else:
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
    from vlmdoctor.examine import examine, model_rules, seen_beside
    from vlmdoctor.targets.resolve import resolve

    output.rules(model_rules())  # a misspelt rule is reported before the model is built
    progress("building the model")
    resolved = resolve(target, trust_remote_code=trust_remote_code, budget=budget)
    settings.load().fill(resolved.subject)
    if device is not None:
        _move(resolved.subject, device)
    seen, rules = seen_beside(resolved.file, resolved.facts)
    return examine(
        resolved.subject,
        target=target,
        rules=output.rules(rules),
        depth=depth,
        budget=budget,
        fail_on=output.fail_on,
        progress=progress,
        given=seen,
        facts=resolved.facts,
        missing_batch=resolved.missing_batch,
    )


def _cursor_moves() -> bool:
    """Whether a line on standard error can be taken away again; in the cell of a notebook it would stay."""
    return sys.stderr.isatty() and not below_a_kernel()


def _move(subject: Subject, device: str) -> None:
    import torch

    from vlmdoctor.sandbox.call import moved

    try:
        place = torch.device(device)
        subject.model.to(place)
        subject.batch = moved(subject.batch, place)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {device} can't be used here: {first_line(error)}.") from error
