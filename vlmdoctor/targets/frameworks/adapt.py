"""Subjects of what frameworks train: a LightningModule, or a Trainer of transformers."""

from __future__ import annotations

from typing import Any

from vlmdoctor.subject import Subject
from vlmdoctor.targets.frameworks import hf_trainer, lightning_module


def is_adaptable(made: Any) -> bool:
    """Whether `made` holds a model in a way that a framework has defined."""
    return hf_trainer.is_trainer(made) or lightning_module.module_in(made) is not None


def adapted(subject: Subject, source: str) -> Subject:
    """`subject` with the framework's object taken apart; what the user gave stays as it was given.

    Raises:
        UserError: What is needed is missing, or the user's code raised.
    """
    if hf_trainer.is_trainer(subject.model):
        subject = hf_trainer.subject_of(subject, source)
    module = lightning_module.module_in(subject.model)
    return subject if module is None else lightning_module.subject_of(module, subject, source)
