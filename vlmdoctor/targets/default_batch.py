"""A batch for a model that came without one: by its folder's processor, else from its configuration."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.plain_text import first_line, raised
from vlmdoctor.sandbox.limited import SECONDS
from vlmdoctor.subject import Subject
from vlmdoctor.targets.conversation import conversation, has_tokenizer, label_answers, processor_of
from vlmdoctor.targets.meta_target import MADE, one_size
from vlmdoctor.targets.target import Target
from vlmdoctor.targets.within_limits import bounded

SIDES = (224, 64, 32)  # pixels of smaller images, where those of the usual size don't fit
ROWS = 2  # so that what moves one can be seen not to move the other


def with_batch(
    target: Target,
    folder: Path | None = None,
    trust_remote_code: bool = False,
    budget: float | None = None,
) -> Target:
    """The target, its subject given a batch, and tokenizer and processor where they made it.

    Nothing is done where there is a batch or a dataset, or where the model is none of transformers'.

    Args:
        target: What a user's function or a folder gave.
        folder: Where tokenizer and processor may lie.
        trust_remote_code: Whether code in that folder may be run.
        budget: Seconds that the folder's processor may take; None: those of `limited`.
    """
    subject = target.subject
    given = (subject.batch, subject.train_dataset, subject.loss_fn)
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(subject.model, transformers.PreTrainedModel):
        return target
    if any(each is not None for each in given):
        return target
    why = ""
    if folder is not None and has_tokenizer(folder):
        try:
            _by_processor(subject, folder, trust_remote_code, budget)
            made = "two conversations, encoded by the processor in the folder"
            return replace(target, facts={**target.facts, "batch": made})
        except UserError as error:
            why = f"; {first_line(error)}"
    model = subject.model
    try:
        subject.batch = _by_configuration(model)
    except Exception as error:  # it asks the model, which may raise anything
        reason = (
            f"no batch could be made for {type(model).__name__} ({raised(error, 200)}); "
            f"give a function that returns (model, batch)"
        )
        return replace(target, missing_batch=reason)
    return replace(target, facts={**target.facts, "batch": MADE + why})


def _by_configuration(model: Any) -> dict[str, Any]:
    """With images of the size that the configuration suggests, or smaller ones if they exceed the context."""
    from vlmdoctor.knowledge.config_fields import text_config
    from vlmdoctor.probes.data.vocabulary import max_positions
    from vlmdoctor.targets.synthetic import batch_for

    context = max_positions(text_config(model.config)) or sys.maxsize
    for size in (None,) if one_size(model.config) else (None, *SIDES):
        batch = batch_for(model, model.config, batch_size=ROWS, image_size=size)
        if "input_ids" not in batch or batch["input_ids"].shape[1] <= context:
            break
    return batch


def _by_processor(
    subject: Subject, folder: Path, trust_remote_code: bool, budget: float | None = None
) -> None:
    """Gives the subject the batch, tokenizer and processor; what the folder's files ask for is tried before.

    Raises:
        UserError: They make no conversation, or not within their limits.
    """
    if trust_remote_code:
        _encode(subject, folder, trust_remote_code=True)
        return
    seconds = SECONDS if budget is None else min(budget, SECONDS)
    bounded(folder, lambda: _encode(subject, folder, trust_remote_code=False), seconds)


def _encode(subject: Subject, folder: Path, *, trust_remote_code: bool) -> None:
    owner: Any = processor_of(folder, trust_remote_code)
    batch = conversation(owner, folder, ROWS)
    tokenizer = getattr(owner, "tokenizer", owner)
    subject.batch, subject.tokenizer = batch, tokenizer
    subject.processor = None if owner is tokenizer else owner
    label_answers(subject, always=True)
