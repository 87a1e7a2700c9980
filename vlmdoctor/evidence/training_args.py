"""The training arguments that rules ask for, from a mapping or from `TrainingArguments`."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
PROBE = "vlmdoctor.probes.model.training_args"


@dataclass(frozen=True, kw_only=True)
class TrainingArgs:
    """What was given; None where it was not.

    Attributes:
        steps: Optimizer steps of the whole run, also where it is given in epochs.
        accumulation: Micro-batches per optimizer step.
        world_size: Processes.
        fp16: Whether float16 with a gradient scaler is used.
        scheduler: The schedule's name, such as `cosine`.
        warmup: Steps of warm-up that were asked for.
        reentrant: Whether gradient checkpointing is on and reentrant.
        find_unused: Whether DDP looks for unused parameters.
        of_trainer: Whether they are transformers' own `TrainingArguments`, so that its `Trainer` is the loop.
    """

    steps: int | None = None
    accumulation: int = 1
    world_size: int = 1
    fp16: bool = False
    scheduler: str | None = None
    warmup: int | None = None
    reentrant: bool = False
    find_unused: bool = False
    of_trainer: bool = False
