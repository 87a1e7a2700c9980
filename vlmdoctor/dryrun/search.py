"""The largest batch and sequence that fit a GPU, and settings under which a step does, in few dry runs.

What a step takes grows evenly with the samples, and with the square of the sequence at most. So a few sizes
are measured, the answer is computed from them, and confirmed by one dry run more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from vlmdoctor.dryrun.cost import Gpu, cost_of, fits, room_on
from vlmdoctor.dryrun.measure import Measured, measure
from vlmdoctor.dryrun.optimizers import optimizer_bytes
from vlmdoctor.dryrun.plan import Plan
from vlmdoctor.errors import Unavailable, UserError
from vlmdoctor.subject import Subject, canonical_name, role_of

_TRIES = 4
_CLOSE = 0.02  # of the answer: nearer is not looked for
# Masks are real in a dry run: beyond so many elements the answer is computed and not confirmed.
_MOST_ELEMENTS = 1 << 28
_MOST_RANKS = 512


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
    needs: Callable[[int], int], known: dict[int, int], room: int, *, guess: int, confirmable: int, most: int
) -> Largest:
    """The largest size whose need is within `room`.

    Args:
        needs: Bytes at a size, by a dry run; `Unavailable` where it can't be carried.
        known: Bytes at the sizes that were measured already, one at least.
        guess: Where to look first.
        confirmable: The largest size that a dry run may be made of.
        most: There is no larger size.
    """
    smallest = min(known)
    for _ in range(_TRIES):
        below = [size for size, bytes_ in known.items() if bytes_ <= room]
        above = [size for size, bytes_ in known.items() if bytes_ > room]
        if smallest in above or (below and max(below) >= most):
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
        guess = _solved(known, room)
    below = [size for size, bytes_ in known.items() if bytes_ <= room]
    if not below:
        return Largest(None)
    best = max(below)
    if best == confirmable < most and len(known) > 1:
        computed = min(max(_solved(known, room), best), most)
        return Largest(computed, confirmed=computed == best, limit=computed == most)
    return Largest(best, limit=best == most)


def _solved(known: dict[int, int], room: int) -> int:
    """Where a curve through the three sizes next to the answer reaches `room`: a parabola, else a line."""
    nearest = sorted(known, key=lambda size: abs(known[size] - room))[:3]
    sizes = sorted(nearest)
    if len(sizes) == 1:
        return sizes[0]
    if len(sizes) == 3:
        a, b, c = sizes
        first, second = (
            (known[b] - known[a]) / (b - a),
            (known[c] - known[b]) / (c - b),
        )
        curve = (second - first) / (c - a)
        slope = first - curve * (a + b)
        constant = known[a] - slope * a - curve * a * a - room
        inside = slope * slope - 4 * curve * constant
        if curve > 0 and inside >= 0:
            return math.floor((-slope + math.sqrt(inside)) / (2 * curve))
    low, high = sizes[-2], sizes[-1]
    slope = (known[high] - known[low]) / (high - low)
    return high + math.floor((room - known[high]) / slope) if slope > 0 else 2 * high


def largest_batch(
    subject: Subject,
    plan: Plan,
    base: Measured,
    gpu: Gpu,
    rows: int,
    tokens: int,
    make_batch: Callable[[int, int | None], Any],
) -> Largest:
    """How many samples fit, each as long as those of the batch that was measured."""
    cost = cost_of(base, plan.optimizer)
    room = room_on(gpu)
    each = max(base.saved // rows, 1)

    def needs(size: int) -> int:
        return cost_of(measure(subject, plan, make_batch(size, None)), plan.optimizer).peak

    if cost.peak > room and rows > 1:
        cost, rows = cost_of(measure(subject, plan, make_batch(1, None)), plan.optimizer), 1
    fixed = cost.peak - base.peak if cost.peak_in != "optimizer step" else cost.parameters + cost.optimizer
    confirmable = max(_MOST_ELEMENTS // max(tokens * tokens, 1), rows)
    guess = (room - fixed) // each
    return largest(needs, {rows: cost.peak}, room, guess=int(guess), confirmable=confirmable, most=1 << 24)


def largest_sequence(
    subject: Subject,
    plan: Plan,
    base: Measured,
    gpu: Gpu,
    rows: int,
    tokens: int,
    context: int | None,
    make_batch: Callable[[int, int | None], Any],
) -> Largest:
    """How many tokens each sample may have, up to what the context holds."""
    room = room_on(gpu)

    def needs(size: int) -> int:
        return cost_of(measure(subject, plan, make_batch(rows, size)), plan.optimizer).peak

    most = context or 1 << 20
    confirmable = max(math.isqrt(_MOST_ELEMENTS // rows), tokens)
    if most <= tokens:
        return Largest(tokens if cost_of(base, plan.optimizer).peak <= room else None, limit=True)
    known = {tokens: cost_of(base, plan.optimizer).peak}
    return largest(needs, known, room, guess=most, confirmable=confirmable, most=most)


def settings_that_fit(subject: Subject, plan: Plan, base: Measured, gpu: Gpu) -> list[dict[str, Any]]:
    """The first setting of each kind under which the same batch fits, the least change first."""
    found: list[dict[str, Any]] = []
    seen: dict[Plan, Measured] = {replace(plan, gpu=None, optimizer=""): base}
    for kind, options, changed in _changes(plan, base):
        if any(setting["kind"] == kind for setting in found):
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
            found.append({"kind": kind, "options": options, "peak": cost.peak, "peak_in": cost.peak_in})
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


def _changes(plan: Plan, base: Measured) -> Iterator[tuple[str, str, Plan]]:
    """Kind, options as typed, plan: the least change first within each kind."""
    import torch

    halved = any(p.dtype is not torch.float32 for p in base.learning) or plan.precision in ("bf16", "fp16")
    half: dict[str, Any] = {} if halved else {"precision": "bf16", "own_weights": False}
    again = {"checkpointing": True}
    small = {"optimizer": "adamw-8bit"}
    whole: list[tuple[str, dict[str, Any]]] = [
        ("all parameters", half),
        ("all parameters", {**half, **again}),
        ("all parameters", {**half, **small}),
        ("all parameters", {**half, **small, **again}),
        ("vision frozen", {**half, **again, "freeze": ("vision",)}),
        ("vision frozen", {**half, **small, **again, "freeze": ("vision",)}),
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
