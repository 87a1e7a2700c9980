"""Cheap checks on the very model and data of a run, before its first step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vlmdoctor.report import Report
from vlmdoctor.rulebook import Rule

if TYPE_CHECKING:
    from minivlm.run import Run

SAMPLES = 4
# A model so large that one pass takes longer than this is checked as far as it goes.
SECONDS = 20.0


def preflight(run: Run, rules: Iterable[Rule], *, fail_on: str) -> Report:
    """One forward and backward pass on a few training samples, judged; it leaves no trace on the run."""
    from vlmdoctor.examine import examine
    from vlmdoctor.subject import Subject

    batch = _batch(run)
    subject = Subject(
        model=run.model,
        batch=batch,
        optimizer=run.optimizer,
        trainable=run.trainable_patterns,
        processor=run.processor,
        training_args={"max_length": run.config.max_length},
    )
    return examine(
        subject,
        target=f"minivlm:{run.config.preset}",
        rules=rules,
        depth="static" if batch is None else "backward",
        budget=SECONDS,
        fail_on=fail_on,
    )


def _batch(run: Run) -> dict[str, Any] | None:
    """The first training samples; None in the contrastive stage, whose batches are of another kind."""
    config = run.config
    if config.stage == "clip":
        return None
    from minivlm.data import Collator, load_data

    dataset = load_data(config.data, "train", config.seed, on_bad_row=config.on_bad_row)
    collate = Collator(run.processor, config.max_length, config.padding_side, config.images)
    samples = [dataset[i] for i in range(min(SAMPLES, len(dataset)))]
    return {name: value.to(run.device) for name, value in collate(samples).items()}
