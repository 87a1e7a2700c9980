"""`vlmdoctor.check`: examines a model with whatever the user has, and leaves no trace on it."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmdoctor.budget import BudgetedGatherer
from vlmdoctor.contract import parse
from vlmdoctor.coverage import coverage
from vlmdoctor.engine import DEPTHS, judge
from vlmdoctor.errors import Unavailable, UserError, WouldMove
from vlmdoctor.evidence.contract_status import ContractStatus
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.knowledge.named_parts import naming
from vlmdoctor.notebook.progress import progress_line
from vlmdoctor.proof.prove import prove
from vlmdoctor.report import Report
from vlmdoctor.rulebook import Rule, all_rules, select_rules
from vlmdoctor.sandbox.examining import examining
from vlmdoctor.statements import statements
from vlmdoctor.subject import Subject, optimizers


def check(
    model: Any,
    batch: Any = None,
    optimizer: Any = None,
    *,
    loss_fn: Callable[[Any, Any], Any] | None = None,
    lr_scheduler: Any = None,
    tokenizer: Any = None,
    processor: Any = None,
    train_dataset: Any = None,
    data_collator: Any = None,
    checkpoint: Any = None,
    trainable: Iterable[str] | str | None = None,
    training_args: Any = None,
    contract: Mapping[str, Any] | None = None,
    roles: Mapping[str, Any] | None = None,
    image_token_id: int | None = None,
    labels_name: str | None = None,
    depth: str | None = None,
    budget: float | None = None,
    select: Iterable[str] | str = (),
    extend_select: Iterable[str] | str = (),
    ignore: Iterable[str] | str = (),
    fail_on: str = "error",
) -> Report:
    """Examines `model` before a long run: is it wired so that it can learn?

    Weights, buffers, gradients, optimizer, random states, training mode and hooks are afterwards bit for bit
    what they were.

    Args:
        model: A module, a Trainer, a Subject, a tuple (model, batch, optimizer), a function without arguments
            that returns one of these, or a TARGET of the command line such as `minivlm:tiny`.
        batch: What the model is called with: a mapping (keywords) or a tuple (positions).
        loss_fn: `loss_fn(model, batch) -> Tensor`; by default the output's `.loss`.
        optimizer: The optimizer, or several.
        lr_scheduler, tokenizer, processor, train_dataset, data_collator, checkpoint, trainable,
            training_args: As in `Subject`.
        contract: What the run is meant to be, as in `[tool.vlmdoctor.contract]`: `{"vision": "frozen"}`.
        roles, image_token_id, labels_name: As in `Subject`: which part is which where names don't say it;
            measured where they are not given.
        depth: `static`, `shapes`, `forward`, `backward` or `steps`; by default as deep as the batch allows.
        budget: Seconds after which no further probe is started.
        select, extend_select, ignore: Rules: names, codes, prefixes of codes, ALL; one, or several.
        fail_on: The least severity that fails: `error`, `warning` or `never`.

    Raises:
        UserError: Something that was given can't be used at all.
    """
    if fail_on not in ("error", "warning", "never"):
        raise UserError(f"fail_on can't be '{fail_on}'; choose one of error, warning, never.")
    from vlmdoctor.sandbox.restore import restoring_subject
    from vlmdoctor.targets.factory import subject_of
    from vlmdoctor.targets.given import given

    select_rules(model_rules(), select, extend_select, ignore)  # before anything is built
    fields = {
        "batch": batch,
        "loss_fn": loss_fn,
        "optimizer": optimizer,
        "lr_scheduler": lr_scheduler,
        "tokenizer": tokenizer,
        "processor": processor,
        "train_dataset": train_dataset,
        "data_collator": data_collator,
        "checkpoint": checkpoint,
        "trainable": trainable,
        "training_args": training_args,
        "contract": None if contract is None else parse(contract, "contract="),
        "roles": roles,
        "image_token_id": image_token_id,
        "labels_name": labels_name,
    }
    examined = given(model, fields)
    seen, rules = seen_beside(examined.file, examined.facts)
    kept = restoring_subject(examined.subject, values=False)
    try:
        with kept:
            try:
                subject = subject_of(examined.subject, "the given Subject")
            except WouldMove as refusal:
                raise UserError(
                    f"no batch can be read from what was given: {refusal}; give `batch`."
                ) from None
            target = examined.name or type(subject.model).__name__
            with progress_line(target) as progress:
                return examine(
                    subject,
                    target=target,
                    rules=select_rules(rules, select, extend_select, ignore),
                    depth=depth,
                    budget=budget,
                    fail_on=fail_on,
                    progress=progress,
                    given=seen,
                    facts={**examined.facts, "not_kept": not_kept_by(kept)},
                    missing_batch=examined.missing_batch,
                )
    finally:
        kept.close()


def seen_beside(file: Path | None, facts: Mapping[str, Any]) -> tuple[list[object], list[Rule]]:
    """(evidence that a target brings along, the rules that judge it): its source file is read as well.

    The command line and Python examine the same target by the same rules.
    """
    from vlmdoctor.evidence.made_batch import MadeBatch
    from vlmdoctor.evidence.source import Source
    from vlmdoctor.probes.failure.traceback import shown_path
    from vlmdoctor.probes.source.files import kind_of
    from vlmdoctor.probes.source.scan import scan
    from vlmdoctor.rulebook import answerable

    seen: list[object] = []
    rules = model_rules()
    if "batch" in facts:
        seen.append(MadeBatch(how=facts["batch"]))
    if file is not None and kind_of(file) == "python":
        seen.append(scan([Path(shown_path(str(file)))]))
        rules += answerable({Source})
    return seen, rules


def not_kept_by(kept: Any) -> list[dict[str, str]]:
    """What an `Unchanged` can't restore or did not look into, as plain values."""
    return [{"at": at, "why": why} for at, why in kept.not_kept]


def model_rules() -> list[Rule]:
    """The rules that judge a model and its run, and not the machine."""
    from vlmdoctor.evidence.environment import Environment
    from vlmdoctor.evidence.source import Source

    return [rule for rule in all_rules() if not rule.kinds & {Environment, Source}]


def examine(
    subject: Subject,
    *,
    target: str,
    rules: Iterable[Rule],
    depth: str | None = None,
    budget: float | None = None,
    fail_on: str = "error",
    progress: Callable[[str], None] | None = None,
    given: Iterable[object] = (),
    facts: Mapping[str, Any] | None = None,
    missing_batch: str | None = None,
) -> Report:
    """Runs `rules` on `subject`; see `check`. `given` is evidence that was gathered elsewhere."""
    if depth is not None and depth not in DEPTHS:
        raise UserError(f"there is no depth '{depth}'; choose one of {', '.join(DEPTHS)}.")
    said = statements(subject)
    with naming(said):
        _refuse_nonsense(subject)
    gather = BudgetedGatherer(
        subject, given, depth=depth or "steps", progress=progress, budget=budget, missing_batch=missing_batch
    )
    rules = list(rules)
    from vlmdoctor.probes.model.named import measured
    from vlmdoctor.sandbox.restore import restoring_subject

    kept = restoring_subject(subject)
    try:
        with naming(said), examining(), kept, _uncompiled():
            known = dict(facts or {})
            not_kept = [*known.pop("not_kept", ()), *not_kept_by(kept)]
            if not_kept:
                known["not_kept"] = list({one["at"]: one for one in reversed(not_kept)}.values())[::-1]
            parts, words = measured(said, gather)
            if words:
                known["parts"] = words
            with naming(parts):
                return _examined(subject, gather, rules, known, target=target, fail_on=fail_on)
    finally:
        # Once more: an exception may have come between any two instructions of leaving it.
        kept.close()


def _examined(
    subject: Subject,
    gather: BudgetedGatherer,
    rules: list[Rule],
    facts: Mapping[str, Any],
    *,
    target: str,
    fail_on: str,
) -> Report:
    parameters = list(subject.model.parameters())
    known = {
        "model": type(subject.model).__name__,
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
    }
    report = judge(rules, gather, command="check", target=target, fail_on=fail_on, facts={**known, **facts})
    agreement = gather.gathered.get(ContractStatus)
    if isinstance(agreement, ContractStatus) and agreement.seen:
        terms = {"expected": dict(agreement.expected), "seen": dict(agreement.seen)}
        report = dataclasses.replace(report, facts={**report.facts, "contract": terms})
    answers = coverage(
        (rule.name for rule in rules),
        report.ran,
        report.skipped,
        gather.gathered,
        (finding.rule for finding in report.findings),
    )
    late = sum(reason == gather.ran_out for _, reason in report.skipped)
    cut = f"the budget of {gather.budget:g} s ran out before {late} checks" if late else None
    report = dataclasses.replace(report, coverage=answers, incomplete=cut)
    forward = gather.gathered.get(Forward)
    if report.findings and isinstance(forward, Forward) and forward.failure is None and gather.in_time():
        from vlmdoctor.probes.places import located

        report = dataclasses.replace(report, findings=located(report.findings, subject))
    report = prove(report, subject, gather, rules, gather.in_time)
    from vlmdoctor.proof.own_words import in_own_api, in_own_names

    # Before the lines are run: they run with the names of the user's batch.
    report = dataclasses.replace(report, findings=in_own_names(report.findings, subject))
    if any(finding.fix and finding.fix.commands for finding in report.findings):
        from vlmdoctor.proof.fix_lines import tried

        found = tried(report.findings, subject, rules, gather.depth, gather.in_time)
        report = dataclasses.replace(report, findings=found)
    return dataclasses.replace(report, findings=in_own_api(report.findings, subject))


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Compiled modules run as plain Python inside: compiling one for a handful of passes takes minutes."""
    if "torch._dynamo" not in sys.modules:  # nothing can be compiled then, and importing it takes a second
        yield
        return
    import torch

    with torch.compiler.set_stance("force_eager"):
        yield


def _refuse_nonsense(subject: Subject) -> None:
    """Raises `UserError` for what no model could be called or trained with."""
    from torch.nn.parameter import UninitializedParameter

    from vlmdoctor.sandbox.call import misfit

    for optimizer in optimizers(subject.optimizer):
        if not hasattr(optimizer, "param_groups"):
            raise UserError(
                f"the optimizer is an object of type {type(optimizer).__name__} without param_groups."
            )
    if subject.checkpoint is not None:
        _refuse_broken(subject.checkpoint)
    if any(isinstance(parameter, UninitializedParameter) for parameter in subject.model.parameters()):
        raise UserError(
            f"{type(subject.model).__name__} has lazy parameters without a shape; run one forward pass first."
        )
    if subject.batch is None:
        return
    name = type(subject.model).__name__
    if isinstance(subject.batch, Mapping | tuple | list) and not len(subject.batch):
        raise UserError(f"the batch for {name} is empty.")
    if subject.loss_fn is None and (reason := misfit(subject.model, subject.batch)) is not None:
        raise UserError(f"the batch does not fit {name}.forward: {reason}.")


def _refuse_broken(checkpoint: Any) -> None:
    """Raises `UserError` for a checkpoint that is not there, cut short, or none at all."""
    from vlmdoctor.probes.checkpoint.files import open_checkpoint

    try:
        with open_checkpoint(checkpoint):
            pass
    except Unavailable:
        pass  # its rules are skipped with the reason
