"""What a training run will cost, and where it fits: the dry step's measure as plain values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vlmdoctor.dryrun.cost import (
    KNOWN_ERROR,
    UTILISATION,
    cost_of,
    fits,
    is_uncertain,
    room_on,
    seconds_a_step,
)
from vlmdoctor.dryrun.measure import StepCost, measure, of_shapes
from vlmdoctor.dryrun.plan import Plan, prepared
from vlmdoctor.dryrun.search import largest_batch, largest_sequence, settings_that_fit
from vlmdoctor.evidence.shapes import Shapes
from vlmdoctor.knowledge.gpus import GPUS, gpu_named
from vlmdoctor.subject import Subject

UNITS = {
    "bytes": "bytes on one rank",
    "flops": "floating-point operations of one step on one rank",
    "tokens_a_second": "tokens a second on one rank, communication aside",
    "utilisation": "share of the GPU's dense peak rate",
    "at_peak": "bytes on one rank that are alive at the peak; they add up to bytes.peak",
    "peak_rate": "1e12 floating-point operations a second",
    "known_error": "share of bytes.peak",
}


def estimate(
    subject: Subject, plan: Plan, shapes: Shapes, make_batch: Callable[[int, int | None], Any] | None
) -> dict[str, Any]:
    """What the step costs and, for a named GPU, whether it fits and what would; plain values.

    Args:
        make_batch: Makes a batch of so many samples of such a length (None: as long as they are);
            None where the batch is the user's own.
    """
    measured = (
        measure(subject, plan)
        if plan.shard == "fsdp2"
        else of_shapes(shapes, prepared(subject.model, plan), plan)
    )
    cost = cost_of(measured, plan.optimizer)
    runs_in = _runs_in(plan, shapes)
    parts = cost.to_dict()
    told: dict[str, Any] = {
        "precision": _precision(plan, shapes),
        "optimizer": plan.optimizer,
        "gradient_checkpointing": plan.checkpointing,
        "lora": plan.lora,
        "frozen": list(plan.freeze),
        "bytes": parts,
        "at_peak": {name: size for name, size in cost.at_peak.items() if size},
        "known_error": KNOWN_ERROR,
        "utilisation": UTILISATION,
        "units": UNITS,
        "tokens_a_second": {
            name: speed
            for name, gpu in GPUS.items()
            if fits(cost, gpu) and (speed := _speed(shapes, seconds_a_step(cost, gpu, runs_in)))
        },
        "fits_on": [name for name, gpu in GPUS.items() if fits(cost, gpu)],
        "uncertain_on": [name for name, gpu in GPUS.items() if is_uncertain(cost, gpu)],
    }
    if plan.shard is not None:
        told["ranks"] = {
            "world_size": plan.world_size,
            "shard": plan.shard,
            "blocks": measured.blocks,
            "largest_block": measured.largest_block,
            "gathered": measured.gathered,
            "buckets": measured.buckets,
            "reduced_in": "float32" if plan.autocast is not None else runs_in,
        }
    if plan.gpu is not None:
        told["gpu"] = _on_gpu(subject, plan, shapes, measured, make_batch)
    return told


def _on_gpu(
    subject: Subject,
    plan: Plan,
    shapes: Shapes,
    measured: StepCost,
    make_batch: Callable[[int, int | None], Any] | None,
) -> dict[str, Any]:
    gpu = gpu_named(plan.gpu or "")
    cost = cost_of(measured, plan.optimizer)
    runs_in = _runs_in(plan, shapes)
    seconds = seconds_a_step(cost, gpu, runs_in)
    told: dict[str, Any] = {
        "name": plan.gpu,
        "memory": int(gpu.memory * (1 << 30)),
        "room": room_on(gpu),
        "fits": fits(cost, gpu),
        "uncertain": is_uncertain(cost, gpu),
        "seconds_a_step": seconds,
        "tokens_a_second": _speed(shapes, seconds),
        "peak_rate": gpu.single if runs_in == "float32" else gpu.half,
        "lacks_bfloat16": runs_in == "bfloat16" and not gpu.bfloat16,
    }
    if make_batch is not None and shapes.batch_size and shapes.tokens:
        size = (shapes.batch_size, shapes.tokens)
        told["batch"] = asdict(largest_batch(subject, plan, measured, gpu, size, make_batch))
        told["largest_batch"] = told["batch"]["size"]
        if told["fits"]:
            longest = largest_sequence(subject, plan, measured, gpu, size, shapes.context, make_batch)
            told["sequence"] = asdict(longest)
    if not told["fits"]:
        told["settings"] = settings_that_fit(subject, plan, measured, gpu)
        # One that surely fits before one that may.
        surest = sorted(told["settings"], key=lambda setting: setting["uncertain"])
        told["would_fit"] = surest[0]["options"] if surest else None
    return told


def _runs_in(plan: Plan, shapes: Shapes) -> str:
    return str(plan.autocast).removeprefix("torch.") if plan.autocast is not None else shapes.dtype


def _precision(plan: Plan, shapes: Shapes) -> str:
    return (
        shapes.dtype if plan.autocast is None else f"{shapes.dtype} under {_runs_in(plan, shapes)} autocast"
    )


def _speed(shapes: Shapes, seconds: float | None) -> float | None:
    return (shapes.batch_size or 1) * shapes.tokens / seconds if shapes.tokens and seconds else None


class _Unmade(TorchDispatchMode):
    """Random floats are not drawn: in a dry run nobody looks at them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in (torch.ops.aten.randn, torch.ops.aten.rand):
            return torch.empty(args[0], dtype=kwargs.get("dtype"), device="meta")
        return func(*args, **kwargs)


@contextlib.contextmanager
def without_pixels() -> Iterator[None]:
    """Batches that are made inside have pixels without content: any number of them takes no memory."""
    with _Unmade():
        yield
