"""A Trainer of transformers (or TRL) as a Subject: a batch of its own loader, its optimizer, its loss."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.subject import Subject
from vlmdoctor.targets.frameworks.first_batch import first_batch, on_device_of
from vlmdoctor.targets.target import user_code_errors

LIBRARIES = ("transformers", "trl")


def is_trainer(made: Any) -> bool:
    """Whether `made` is a `transformers.Trainer`, of a subclass perhaps."""
    return any(
        kind.__name__ == "Trainer" and kind.__module__.partition(".")[0] == "transformers"
        for kind in type(made).__mro__
    )


def subject_of(given: Subject, source: str) -> Subject:
    """`given`, whose model is a Trainer, with what the Trainer holds where the user has said nothing."""
    trainer, kind = given.model, type(given.model).__name__
    if getattr(trainer, "model", None) is None:
        raise UserError(f"the {kind} of {source} has no model.")
    processing = getattr(trainer, "processing_class", None)
    is_processor = hasattr(processing, "tokenizer") or hasattr(processing, "image_processor")
    subject = dataclasses.replace(
        given,
        model=trainer.model,
        training_args=given.training_args or trainer.args,
        train_dataset=_first(given.train_dataset, trainer.train_dataset),
        data_collator=_first(given.data_collator, trainer.data_collator),
        processor=_first(given.processor, processing if is_processor else None),
        tokenizer=_first(given.tokenizer, None if is_processor else processing),
        lr_scheduler=_first(given.lr_scheduler, trainer.lr_scheduler),
    )
    subject.batch = on_device_of(trainer.model, _first(given.batch, _batch(trainer, given, kind)))
    subject.optimizer = _first(given.optimizer, _optimizer(trainer, kind))
    if subject.loss_fn is None and _has_own_loss(trainer, subject):
        subject.loss_fn = lambda model, batch: trainer.compute_loss(model, batch)
    return subject


def _first(given: Any, found: Any) -> Any:
    return found if given is None else given


def _batch(trainer: Any, given: Subject, kind: str) -> Any:
    """One batch of the Trainer's own loader, collator and column removal included."""
    from vlmdoctor.sandbox.restore import same_random_states

    if given.batch is not None:
        return None
    if trainer.train_dataset is None:
        raise UserError(f"the {kind} has no train_dataset, and no batch was given.")
    prepared = getattr(getattr(trainer, "accelerator", None), "_dataloaders", [])
    before = list(prepared)
    with same_random_states(), user_code_errors(f"the train_dataset and data_collator of the {kind}"):
        batch = first_batch(trainer.get_train_dataloader(), f"the {kind}")
    prepared[:] = before
    return dict(batch) if isinstance(batch, Mapping) else batch


def _optimizer(trainer: Any, kind: str) -> Any:
    """The Trainer's optimizer, or the one that it would make; it is left without it again."""
    if trainer.optimizer is not None:
        return trainer.optimizer
    with user_code_errors(f"create_optimizer of the {kind}"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = trainer.create_optimizer()
    made, trainer.optimizer = trainer.optimizer or made, None
    return made


def _has_own_loss(trainer: Any, subject: Subject) -> bool:
    """Whether the loss is the user's, a smoother's, or TRL's for its own kinds of batches."""
    from vlmdoctor.sandbox.call import misfit

    home = next(kind for kind in type(trainer).__mro__ if "compute_loss" in vars(kind))
    if home.__module__.partition(".")[0] not in LIBRARIES:
        return True
    if getattr(trainer, "compute_loss_func", None) or getattr(trainer, "label_smoother", None):
        return True
    return misfit(subject.model, subject.batch) is not None
