"""The training arguments that rules ask for, from a mapping or from `TrainingArguments`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.training_args import TrainingArgs
from vlmdoctor.subject import Subject


def probe(subject: Subject, gather: Callable[[type], Any]) -> TrainingArgs:
    """Reads the arguments; starts nothing."""
    given = subject.training_args
    if given is None:
        raise Unavailable("no training_args were given")

    def read(name: str, default: Any = None) -> Any:
        value = given.get(name) if isinstance(given, Mapping) else getattr(given, name, None)
        return default if value is None else value

    accumulation = _positive(read("gradient_accumulation_steps")) or 1
    world_size = _positive(read("world_size")) or 1
    steps = _positive(read("max_steps")) or _steps_of_epochs(subject, read, accumulation * world_size)
    warmup = read("warmup_steps", 0) or read("warmup_ratio", 0)
    if isinstance(warmup, float) and 0 < warmup < 1:
        warmup = math.ceil(warmup * steps) if steps else None
    scheduler = read("lr_scheduler_type")
    kwargs = read("gradient_checkpointing_kwargs", {})
    return TrainingArgs(
        steps=steps,
        accumulation=accumulation,
        world_size=world_size,
        fp16=read("fp16", False) is True,
        scheduler=None if scheduler is None else str(getattr(scheduler, "value", scheduler)),
        warmup=int(warmup) if isinstance(warmup, int | float) else None,
        reentrant=read("gradient_checkpointing", False) is True and kwargs.get("use_reentrant") is True,
        find_unused=read("ddp_find_unused_parameters", False) is True,
        of_trainer=any(base.__name__ == "TrainingArguments" for base in type(given).__mro__),
    )


def _positive(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and value > 0 else None


def _steps_of_epochs(subject: Subject, read: Callable[..., Any], batches_per_step: int) -> int | None:
    epochs, size = read("num_train_epochs"), read("per_device_train_batch_size")
    try:
        samples = len(subject.train_dataset)
    except TypeError:
        return None
    if not isinstance(epochs, int | float) or not isinstance(size, int) or size < 1 or epochs <= 0:
        return None
    return max(1, math.ceil(epochs * math.ceil(samples / (size * batches_per_step))))


def setting(arguments: Any, name: str) -> Any:
    """A training argument, from a mapping or an object; None where there is none."""
    return arguments.get(name) if isinstance(arguments, Mapping) else getattr(arguments, name, None)
