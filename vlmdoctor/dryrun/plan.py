"""What the user means to train with, applied to a model without weights, and what that costs."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from vlmdoctor.dryrun.cost import (
    GPUS,
    OPTIMIZERS,
    RESERVED,
    UTILISATION,
    Cost,
    cost_of,
    fits,
    gpu_named,
    seconds_a_step,
)
from vlmdoctor.errors import Unavailable, UserError
from vlmdoctor.evidence.shapes import Shapes, shapes_of
from vlmdoctor.subject import Subject

_MOST_SAMPLES = 128
_GUESSES = 4
PRECISIONS = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True)
class Plan:
    """The settings of a training run that decide what it costs.

    Attributes:
        precision: `bf16`, `fp16` or `fp32`: of weights, gradients and activations; None: the model's own.
        optimizer: One of `OPTIMIZERS`.
        checkpointing: Whether activations are recomputed in backward.
        lora: The rank of adapters on all linear layers, everything else frozen; None without.
        gpu: A name of `GPUS`; None where no GPU was named.
    """

    precision: str | None = None
    optimizer: str = "adamw"
    checkpointing: bool = False
    lora: int | None = None
    gpu: str | None = None

    def check(self) -> None:
        """Raises `UserError` for a setting that there is not."""
        if self.precision is not None and self.precision not in PRECISIONS:
            raise UserError(
                f"--precision can't be '{self.precision}'; choose one of {', '.join(PRECISIONS)}."
            )
        if self.optimizer not in OPTIMIZERS:
            raise UserError(
                f"--optimizer can't be '{self.optimizer}'; choose one of {', '.join(OPTIMIZERS)}."
            )
        if self.gpu is not None:
            gpu_named(self.gpu)


def prepared(model: Any, plan: Plan) -> Any:
    """`model` under the plan's settings: adapters attached, checkpointing on. Works on a laid-out copy.

    Raises:
        UserError: The model can't be trained so.
    """
    from vlmdoctor.dryrun.layout import laid_out

    if plan.lora is None and not plan.checkpointing:
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return _adapted(laid_out(model), plan)


def _adapted(model: Any, plan: Plan) -> Any:
    if plan.lora is not None:
        model = _with_adapters(model, plan.lora)
    if plan.checkpointing:
        enable = getattr(model, "gradient_checkpointing_enable", None)
        if enable is None:
            raise UserError(f"{type(model).__name__} has no gradient checkpointing to enable.")
        _without_cache(model)
        try:
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise UserError(f"gradient checkpointing can't be enabled: {error}.") from error
        model.train()
    return model


def _without_cache(model: Any) -> None:
    """Keys and values are not kept for generation while activations are recomputed."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", None):
            config.use_cache = False


def _with_adapters(model: Any, rank: int) -> Any:
    import torch

    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("--lora needs the package peft; install it with: pip install peft") from None
    try:
        with torch.device("meta"):
            return get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear"))
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise UserError(f"--lora can't be applied to {type(model).__name__}: {error}") from error


def shapes_under(subject: Subject, plan: Plan, batch: Any = None) -> Shapes:
    """The dry step of the subject under the plan."""
    import torch

    dtype = getattr(torch, PRECISIONS[plan.precision]) if plan.precision else None
    model = prepared(subject.model, plan)
    return shapes_of(model, subject.batch if batch is None else batch, subject.loss_fn, dtype=dtype)


def outlook(
    subject: Subject, plan: Plan, shapes: Shapes, make_batch: Callable[[int], Any] | None
) -> dict[str, Any]:
    """What the step costs and, for a named GPU, whether it fits and what would; plain values.

    Args:
        make_batch: Makes a batch of that many samples; None where the batch is the user's own.
    """
    cost = cost_of(shapes, plan.optimizer)
    told: dict[str, Any] = {
        "precision": shapes.dtype,
        "optimizer": plan.optimizer,
        "gradient_checkpointing": plan.checkpointing,
        "lora": plan.lora,
        "bytes": cost.to_dict(),
        "utilisation": UTILISATION,
    }
    if plan.gpu is None:
        told["fits_on"] = [name for name, gpu in GPUS.items() if fits(cost, gpu)]
        return told
    gpu = gpu_named(plan.gpu)
    seconds = seconds_a_step(cost, gpu)
    told["gpu"] = {
        "name": plan.gpu,
        "memory": gpu.memory << 30,
        "fits": fits(cost, gpu),
        "seconds_a_step": seconds,
        "tokens_a_second": (shapes.batch_size or 1) * shapes.tokens / seconds
        if shapes.tokens and seconds
        else None,
    }
    if make_batch is not None and shapes.batch_size:
        told["gpu"]["tried_up_to"] = _MOST_SAMPLES
        told["gpu"]["largest_batch"] = _largest_batch(subject, plan, shapes, cost, make_batch)
    if not fits(cost, gpu):
        told["gpu"]["would_fit"] = _cheaper(subject, plan)
    return told


def _largest_batch(
    subject: Subject, plan: Plan, shapes: Shapes, cost: Cost, make_batch: Callable[[int], Any]
) -> int | None:
    """The largest batch that a dry step shows to fit, at most `_MOST_SAMPLES`; None where none was shown to.

    What is kept for backward grows evenly with the samples, and the peak only once that outweighs the
    gradients. So the first guess is from the former, and each next one from the peaks seen.
    """
    assert plan.gpu is not None and shapes.batch_size is not None
    gpu = gpu_named(plan.gpu)
    room = (gpu.memory << 30) - RESERVED
    each = max(shapes.saved_bytes // shapes.batch_size, 1)
    best, best_peak = (shapes.batch_size, cost.peak) if fits(cost, gpu) else (0, 0)
    guess = (room - cost.parameters - cost.optimizer) // each
    for _ in range(_GUESSES):
        guess = max(min(int(guess), _MOST_SAMPLES), 1)
        if guess == best:
            break
        try:
            peak = cost_of(shapes_under(subject, plan, make_batch(guess)), plan.optimizer).peak
        except (Unavailable, UserError):
            break
        if peak <= room and guess > best:
            best, best_peak = guess, peak
        guess += (room - peak) // each if peak <= room else -max((peak - room) // each, 1)
        if peak <= room and guess <= best:
            break
    return best or None if best_peak <= room else None


def _cheaper(subject: Subject, plan: Plan) -> str | None:
    """The first of a few settings, dearest first, under which the same batch fits; None where none does."""
    gpu = gpu_named(plan.gpu or "")
    tries: tuple[tuple[str, dict[str, Any]], ...] = (
        ("--precision bf16", {"precision": "bf16"}),
        ("--precision bf16 --gradient-checkpointing", {"precision": "bf16", "checkpointing": True}),
        (
            "--precision bf16 --optimizer adamw-8bit --gradient-checkpointing",
            {"precision": "bf16", "optimizer": "adamw-8bit", "checkpointing": True},
        ),
        ("--precision bf16 --lora 16", {"precision": "bf16", "lora": 16}),
        (
            "--precision bf16 --lora 16 --gradient-checkpointing",
            {"precision": "bf16", "lora": 16, "checkpointing": True},
        ),
    )
    for options, changes in tries:
        changed = replace(plan, **changes)
        if changed == plan:
            continue
        try:
            shapes = shapes_under(subject, changed)
        except (Unavailable, UserError):
            continue
        if shapes.failure is None and fits(cost_of(shapes, changed.optimizer), gpu):
            return options
    return None
