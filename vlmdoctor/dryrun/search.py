"""The largest batch and sequence that fit a GPU, and settings under which a step does, in few dry runs.

What a step takes grows evenly with the samples, and with the square of the sequence at most. So a few sizes
are measured, the answer is computed from them, and confirmed by one dry run more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from vlmdoctor.dryrun.cost import cost_of, fits, is_uncertain, room_on
from vlmdoctor.dryrun.measure import StepCost, measure
from vlmdoctor.dryrun.optimizers import optimizer_bytes
from vlmdoctor.dryrun.plan import Plan
from vlmdoctor.errors import Unavailable, UserError
from vlmdoctor.knowledge.gpus import GpuModel
from vlmdoctor.knowledge.parameter_names import canonical_name, role_of
from vlmdoctor.subject import Subject

_TRIES = 4
_CLOSE = 0.02  # of the answer: nearer is not looked for
# Masks are real in a dry run: beyond so many elements the answer is computed and not confirmed.
_MOST_ELEMENTS = 1 << 28
_MOST_SAMPLES, _LONGEST, _MOST_RANKS = 1 << 16, 1 << 20, 512


@dataclass(frozen=True)
class Largest:
    """The largest size that fits.

    Attributes:
        size: None where not even the smallest does.
        confirmed: Whether a dry run of that size was made.
        limit: Whether it is the most there is, such as the whole context.
    """

    size: int | None
    confirmed: bool = True
    limit: bool = False


def largest(
    needs: Callable[[int], int],
    known: dict[int, int],
    room: int,
    *,
    guess: int,
    confirmable: int,
    most: int,
    held: int | None = None,
) -> Largest:
    """The largest size whose need is within `room`.

    Args:
        needs: Bytes at a size, by a dry run; `Unavailable` where it can't be carried.
        known: Bytes at the sizes that were measured already, one at least.
        guess: Where to look first.
        confirmable: The largest size that a dry run may be made of.
        most: There is no larger size.
        held: What is needed apart from what grows evenly with the size; None where growth is not even.
    """
    for _ in range(_TRIES):
        below = [size for size, bytes_ in known.items() if bytes_ <= room]
        above = [size for size, bytes_ in known.items() if bytes_ > room]
        if not below or max(below) >= most or (above and len(known) > 2 and guess <= max(below)):
            break
        if above and min(above) - max(below) <= max(1, _CLOSE * max(below)):
            break
        tried = min(max(guess, max(below) + 1), min(above) - 1 if above else most, confirmable)
        if tried in known:
            break
        try:
            known[tried] = needs(tried)
        except (Unavailable, UserError):
            break
        guess = _solved(known, room, held)
    below = [size for size, bytes_ in known.items() if bytes_ <= room]
    if not below:
        return Largest(None)
    best = max(below)
    if best == confirmable < most and len(known) > 1:
        computed = min(max(_solved(known, room, held), best), most)
        return Largest(computed, confirmed=computed == best, limit=computed == most)
    return Largest(best, limit=best == most)


def _solved(known: dict[int, int], room: int, held: int | None) -> int:
    """Where a line, or a parabola, through the sizes next to the answer reaches `room`."""
    points = dict(known)
    if held is not None and len(known) == 2:
        # The smaller may be ruled by the gradients, which do not grow; what grows starts at nothing.
        points = {0: held, max(known): known[max(known)]}
    wanted = 3 if held is None else 2
    sizes = sorted(sorted(points, key=lambda size: abs(points[size] - room))[:wanted])
    if len(sizes) == 3:
        a, b, c = sizes
        first, second = (points[b] - points[a]) / (b - a), (points[c] - points[b]) / (c - b)
        curve = (second - first) / (c - a)
        slope = first - curve * (a + b)
        constant = points[a] - slope * a - curve * a * a - room
        inside = slope * slope - 4 * curve * constant
        if curve > 0 and inside >= 0:
            return math.floor((-slope + math.sqrt(inside)) / (2 * curve))
    low, high = sizes[0], sizes[-1]
    slope = (points[high] - points[low]) / (high - low)
    return high + math.floor((room - points[high]) / slope) if slope > 0 else 2 * high


def largest_batch(
    subject: Subject,
    plan: Plan,
    base: StepCost,
    gpu: GpuModel,
    size: tuple[int, int],
    make_batch: Callable[[int, int | None], Any],
) -> Largest:
    """How many samples fit, each as long as those of the batch that was measured.

    Args:
        size: Samples and tokens of that batch.
    """
    rows, tokens = size
    room = room_on(gpu)
    held = _held(base, plan)
    if cost_of(base, plan.optimizer).peak > room and (rows == 1 or _update(base, plan) > room):
        return Largest(None)

    def needs(samples: int) -> int:
        return held + measure(subject, plan, make_batch(samples, None)).peak

    known = {rows: held + base.peak}
    if known[rows] > room:
        known[1] = needs(1)
    confirmable = max(_MOST_ELEMENTS // max(tokens * tokens, 1), rows)
    guess = (room - held) // max(base.saved // rows, 1)
    return largest(needs, known, room, guess=guess, confirmable=confirmable, most=_MOST_SAMPLES, held=held)


def largest_sequence(
    subject: Subject,
    plan: Plan,
    base: StepCost,
    gpu: GpuModel,
    size: tuple[int, int],
    context: int | None,
    make_batch: Callable[[int, int | None], Any],
) -> Largest:
    """How many tokens each sample may have, up to what the context holds; the batch itself has to fit.

    Args:
        size: Samples and tokens of the batch that was measured.
    """
    rows, tokens = size
    held = _held(base, plan)

    def needs(length: int) -> int:
        return held + measure(subject, plan, make_batch(rows, length)).peak

    most = max(context or _LONGEST, tokens)
    confirmable = max(math.isqrt(_MOST_ELEMENTS // rows), tokens)
    known = {tokens: held + base.peak}
    return largest(needs, known, room_on(gpu), guess=most, confirmable=confirmable, most=most)


def _held(base: StepCost, plan: Plan) -> int:
    """Bytes that are there from the first to the last moment of a step."""
    return base.parameters + base.buckets + cost_of(base, plan.optimizer).optimizer


def _update(base: StepCost, plan: Plan) -> int:
    return cost_of(replace(base, peak=0), plan.optimizer).peak


def settings_that_fit(subject: Subject, plan: Plan, base: StepCost, gpu: GpuModel) -> list[dict[str, Any]]:
    """The first setting of each kind under which the same batch fits, the least change first."""
    found: list[dict[str, Any]] = []
    seen: dict[Plan, StepCost] = {replace(plan, gpu=None, optimizer=""): base}
    for kind, options, changed in _changes(subject.model, plan, base):
        if any(setting["kind"] == kind or setting["options"] == options for setting in found):
            continue
        key = replace(changed, gpu=None, optimizer="")
        try:
            if key not in seen:
                if _least(subject.model, changed) > room_on(gpu):
                    continue
                seen[key] = measure(subject, changed)
            cost = cost_of(seen[key], changed.optimizer)
        except (Unavailable, UserError):
            continue
        if fits(cost, gpu):
            found.append(
                {
                    "kind": kind,
                    "options": options,
                    "peak": cost.peak,
                    "peak_in": cost.peak_in,
                    "uncertain": is_uncertain(cost, gpu),
                }
            )
    return found


def _least(model: Any, plan: Plan) -> float:
    """Bytes below which no step of the plan gets, whatever the batch: so that it needs no dry run."""
    import torch

    held, learning = 0, []
    for name, parameter in model.named_parameters():
        size = plan.dtype.itemsize if plan.dtype is not None else parameter.element_size()
        held += parameter.numel() * size
        frozen = plan.lora is not None or role_of(canonical_name(name)) in plan.freeze
        if parameter.requires_grad and not frozen:
            dtype = plan.dtype or parameter.dtype
            learning.append(torch.empty(parameter.shape, dtype=dtype, device="meta"))
    state, _ = optimizer_bytes(plan.optimizer, learning)
    ranks = plan.world_size or 1 if plan.shard == "fsdp2" else 1
    return (held + sum(p.nbytes for p in learning) + state) / ranks


def _could_fuse(model: Any) -> bool:
    """Whether it writes its attention weights out, and need not."""
    configs = (getattr(module, "config", None) for module in model.modules())
    eager = any(getattr(config, "_attn_implementation", None) == "eager" for config in configs)
    return eager and bool(getattr(model, "_supports_sdpa", False))


def _changes(model: Any, plan: Plan, base: StepCost) -> Iterator[tuple[str, str, Plan]]:
    """Kind, options as typed, plan: the least change first within each kind."""
    import torch

    halved = any(p.dtype is not torch.float32 for p in base.learning) or plan.precision in ("bf16", "fp16")
    half: dict[str, Any] = {} if halved else {"precision": "bf16", "own_weights": False}
    again = {"checkpointing": True}
    small = {"optimizer": "adamw-8bit"}
    without_vision = tuple(dict.fromkeys((*plan.freeze, "vision")))
    fused: dict[str, Any] = {"attention": "sdpa"}
    whole: list[tuple[str, dict[str, Any]]] = [
        *([("fused attention", {**fused, **more}) for more in ({}, half)] if _could_fuse(model) else ()),
        ("all parameters", half),
        ("all parameters", {**half, **again}),
        ("all parameters", {**half, **small}),
        ("all parameters", {**half, **small, **again}),
        ("vision frozen", {**half, **again, "freeze": without_vision}),
        ("vision frozen", {**half, **small, **again, "freeze": without_vision}),
        ("adapters", {**half, "lora": 16}),
        ("adapters", {**half, "lora": 16, **again}),
    ]
    ranks = 2 * (plan.world_size or 1) if plan.shard == "fsdp2" else 2
    while ranks <= _MOST_RANKS:
        whole.append(("more GPUs", {**half, **again, "shard": "fsdp2", "world_size": ranks}))
        ranks *= 2
    for kind, changes in whole:
        changed = replace(plan, **changes)
        if changed != plan and not (plan.lora and kind in ("vision frozen", "adapters") and not changes):
            yield kind, _typed(plan, changed), changed


def _typed(before: Plan, after: Plan) -> str:
    names = {
        "attention": 'attn_implementation="{}"',
        "precision": "--precision {}",
        "optimizer": "--optimizer {}",
        "checkpointing": "--gradient-checkpointing",
        "lora": "--lora {}",
        "freeze": "--freeze {}",
        "shard": "--shard {}",
        "world_size": "--world-size {}",
    }
    old, new = asdict(before), asdict(after)
    changed = ((name, new[name]) for name in names if old[name] != new[name])
    return " ".join(
        names[name].format(",".join(value) if isinstance(value, tuple) else value) for name, value in changed
    )
