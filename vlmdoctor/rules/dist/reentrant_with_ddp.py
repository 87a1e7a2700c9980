"""reentrant-with-ddp: reentrant checkpointing under a DDP that looks for unused parameters."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.training_args import TrainingArgs
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("reentrant-with-ddp", "DIST301")
def reentrant_with_ddp(arguments: TrainingArgs) -> Iterator[Finding]:
    """Reentrant gradient checkpointing with DDP's `find_unused_parameters`.

    ## Why it matters
    Reentrant gradient checkpointing runs a second backward pass inside the first. A DDP that looks for unused
    parameters takes that for a second use: `Expected to mark a variable ready only once` ([accelerate
    389](https://github.com/huggingface/accelerate/issues/389), [ms-swift
    2746](https://github.com/modelscope/ms-swift/issues/2746), [openvla
    90](https://github.com/openvla/openvla/issues/90)). One GPU never shows it.

    ## Confidence and false positives
    The three settings are read from the training arguments: more than one process, reentrant checkpointing,
    `ddp_find_unused_parameters=True`. A warning, since a strategy other than DDP may be used.

    ## What to do
    Set `use_reentrant=False` for gradient checkpointing, or set `ddp_find_unused_parameters=False`.
    """
    if arguments.world_size < 2 or not arguments.reentrant or not arguments.find_unused:
        return
    yield Finding(
        "reentrant gradient checkpointing and ddp_find_unused_parameters do not work together",
        Severity.WARNING,
        at=("training_args.gradient_checkpointing_kwargs", "training_args.ddp_find_unused_parameters"),
        measured={"world_size": arguments.world_size, "use_reentrant": True, "find_unused_parameters": True},
        threshold={"world_size": 1},
        cause="DDP marks checkpointed parameters as unused and then sees their gradients arrive; assumed, "
        "not "
        "known: that the processes are joined by DDP",
        fix=Fix(
            "use non-reentrant checkpointing", ('gradient_checkpointing_kwargs={"use_reentrant": False}',)
        ),
    )


@reentrant_with_ddp.bad
def all_three() -> TrainingArgs:
    return TrainingArgs(world_size=4, reentrant=True, find_unused=True)


@reentrant_with_ddp.good
def one_process() -> TrainingArgs:
    return TrainingArgs(world_size=1, reentrant=True, find_unused=True)
