"""The options of the dry run, and what `check` does for `--depth shapes`."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from vlmdoctor import boundary
from vlmdoctor.errors import NotBuilt, Unavailable, UserError
from vlmdoctor.evidence.fit import Fit
from vlmdoctor.knowledge.gpus import gpu_chosen
from vlmdoctor.plain_text import first_line, text_of

if TYPE_CHECKING:
    from vlmdoctor.report import Report
    from vlmdoctor.rulebook import Rule


@dataclass(frozen=True)
class DryRunOptions:
    """As given on the command line; None where it was not."""

    gpu: str | None = None
    batch_size: int | None = None
    images: int | None = None
    seq_len: int | None = None
    precision: str | None = None
    optimizer: str | None = None
    gradient_checkpointing: bool = False
    lora: int | None = None
    freeze: str | None = None
    shard: str | None = None
    world_size: int | None = None

    @property
    def given(self) -> list[str]:
        """The options that were used, as they are typed."""
        return [
            f"--{name.replace('_', '-')}"
            for name, value in asdict(self).items()
            if value not in (None, False)
        ]


def wanted(target: str, depth: str | None, options: DryRunOptions) -> bool:
    """Whether a dry run is to be made: asked for, or there are no weights that could be loaded."""
    if depth is not None:
        if depth != "shapes" and options.given:
            raise UserError(f"{options.given[0]} belongs to --depth shapes; this was --depth {depth}.")
        return depth == "shapes"
    return bool(options.given) or _without_weights(target)


def _without_weights(target: str) -> bool:
    """Whether the target is a configuration without weights, or with more than memory can hold."""
    from vlmdoctor.targets.checkpoint import PICKLES, SAFE_WEIGHTS, too_large

    path = boundary.expanded(target)
    if path.suffix != ".json" and not boundary.is_file(path / "config.json"):
        return False
    folder = path if boundary.is_dir(path) else path.parent
    return too_large(folder) or not any(boundary.is_file(folder / name) for name in (*SAFE_WEIGHTS, *PICKLES))


# Imports and modules make many objects that live on: Python's default of 700 has them searched for garbage
# over and over, for a fifth of the time of a dry run.
_NEW_OBJECTS = 20_000


@contextlib.contextmanager
def _seldom_searched() -> Iterator[None]:
    before = gc.get_threshold()
    if 0 < before[0] < _NEW_OBJECTS:
        gc.set_threshold(_NEW_OBJECTS, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)


@_seldom_searched()
def dry_run(
    target: str,
    options: DryRunOptions,
    *,
    rules: Iterable[Rule],
    trust_remote_code: bool,
    fail_on: str,
    progress: Callable[[str], None],
    budget: float | None = None,
) -> Report:
    """Lays the target out without weights, runs a step, and judges it."""
    from vlmdoctor import settings
    from vlmdoctor.dryrun.config_culprits import NoModelGatherer, culprits
    from vlmdoctor.dryrun.estimate import estimate, without_pixels
    from vlmdoctor.dryrun.parts import parts_of, ropes_of
    from vlmdoctor.dryrun.plan import Plan, prepared, shapes_under
    from vlmdoctor.engine import judge
    from vlmdoctor.examine import examine
    from vlmdoctor.probes.model.module_tree import scan
    from vlmdoctor.targets.meta_target import MADE, MetaTarget
    from vlmdoctor.targets.resolve import resolve

    terms = settings.load().contract
    chosen = gpu_chosen(options.gpu) if options.gpu is not None else None
    plan = Plan(
        precision=options.precision,
        optimizer=options.optimizer or "adamw",
        checkpointing=options.gradient_checkpointing,
        lora=options.lora,
        freeze=tuple(part.strip() for part in options.freeze.split(",")) if options.freeze else (),
        gpu=chosen.name if chosen is not None else None,
        shard=options.shard,
        world_size=options.world_size,
    )
    plan.check()
    weightless = MetaTarget(
        batch_size=options.batch_size or 1,
        images=1 if options.images is None else options.images,
        length=options.seq_len,
    )
    progress("laying out the model")
    try:
        resolved = resolve(target, trust_remote_code=trust_remote_code, weightless=weightless)
    except NotBuilt as error:
        progress("looking for what contradicts itself")
        told = culprits(target, weightless, plan, f"raises {error.raised}")
        if not told.found:
            raise
        return judge(
            rules,
            NoModelGatherer(told),
            command="check",
            target=target,
            fail_on=fail_on,
            facts={"not_built": text_of(error)},
        )
    subject = resolved.subject
    made = resolved.facts.get("batch") == MADE
    sized = [name for name in options.given if name in ("--batch-size", "--images", "--seq-len")]
    if sized and not made and subject.batch is not None:
        raise UserError(f"{sized[0]} has no effect on {target}, which brings its own batch.")
    if subject.training_args is not None:
        plan = plan.as_trained(subject.training_args, optimizer_named=options.optimizer is not None)
    given: list[Any] = []
    facts: dict[str, Any] = dict(resolved.facts)
    if not options.freeze and not options.lora:
        if made:
            plan = plan.as_agreed(terms, subject.model)
        elif subject.contract is None:
            subject.contract = terms
    missing = resolved.missing_batch
    if resolved.raised is not None:
        progress("looking for what contradicts itself")
        failed = f"raises {resolved.raised}"
        given.append(culprits(target, weightless, plan, failed, subject.model.config))
    if subject.batch is not None:
        progress("running a step without weights")
        try:
            shapes = replace(shapes_under(subject, plan), batch_made=made)
        except Unavailable as reason:
            missing, subject.batch = str(reason), None
            facts["dry_run"] = {"not_possible": missing}
        else:
            given.append(shapes)
            facts["dry_run"] = _told(shapes)
            if plan.freeze and not options.freeze:
                facts["dry_run"]["frozen_by_contract"] = list(plan.freeze)
            if "images" in facts and shapes.images:
                facts["dry_run"]["images_are"] = facts["images"]
            if shapes.failure is not None and made:
                progress("looking for what contradicts itself")
                failed = f"raises {shapes.failure.type}: {shapes.failure.message.partition(chr(10))[0]}"
                given.append(culprits(target, weightless, plan, failed, subject.model.config, shapes.tokens))
            if shapes.failure is None:
                progress("estimating what it costs")

                def sized_batch(rows: int, length: int | None) -> Any:
                    resized = replace(weightless, batch_size=rows, length=length or weightless.length)
                    try:
                        with without_pixels():
                            return resized.batch(subject.model, subject.model.config)
                    except (RuntimeError, IndexError, ValueError) as error:
                        raise Unavailable(f"no such batch could be made: {first_line(error)}") from error

                try:
                    cost = estimate(subject, plan, shapes, sized_batch if made else None)
                except Unavailable as reason:
                    facts["dry_run"]["cost_not_possible"] = str(reason)
                else:
                    facts["dry_run"]["cost"] = cost
                    if chosen is not None:
                        cost["gpu"] |= {"asked": options.gpu, "others": list(chosen.others)}
                    if plan.gpu is not None:
                        given.append(_fit(plan.gpu, cost))
    subject.model = prepared(subject.model, plan)
    given.append(scan(subject.model, dry_run=True))
    if "modules" in facts.get("dry_run", {}):
        facts["dry_run"] |= {**parts_of(subject.model, shapes), "rope": ropes_of(subject.model)}
    report = examine(
        subject,
        target=target,
        rules=rules,
        depth="shapes",
        budget=budget,
        fail_on=fail_on,
        progress=progress,
        given=given,
        facts=facts,
        missing_batch=missing,
    )
    if chosen is not None and "gpu" not in facts.get("dry_run", {}).get("cost", {}) and not report.failing:
        return replace(report, incomplete=f"whether a step fits {chosen.name} is not known")
    return report


def _fit(gpu: str, cost: dict[str, Any]) -> Fit:
    parts = cost["bytes"]
    return Fit(
        gpu=gpu,
        memory=cost["gpu"]["room"],
        needed=parts["peak"],
        needed_in=parts["peak_in"],
        parts={name: parts[name] for name in ("parameters", "gradients", "optimizer", "activations")},
        would_fit=cost["gpu"].get("would_fit"),
    )


def _told(shapes: Any) -> dict[str, Any]:
    return {
        "batch_size": shapes.batch_size,
        "tokens": shapes.tokens,
        "image_tokens": shapes.image_tokens,
        "images": shapes.images,
        "context": shapes.context,
        "without_gradient": list(shapes.without_gradient),
        "flops": {"forward": shapes.flops_forward, "backward": shapes.flops_backward},
        "peak_at": list(shapes.peak_at),
        "spread": shapes.spread,
        "loss": shapes.loss,
        "seconds": shapes.seconds,
        "modules": [asdict(module) for module in shapes.modules],
    }
