"""From what a call in Python was given to the Subject that is examined."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.subject import Subject
from vlmdoctor.targets.factory import called, described, subject_of


@dataclass
class Given:
    """What is examined.

    Attributes:
        subject: It.
        name: What to call it; None for the model's class.
        file: The source file that builds it, where that is known.
        facts: What else is known of it, as plain values.
        missing_batch: Why it has no batch; None where that is not known.
    """

    subject: Subject
    name: str | None = None
    file: Path | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    missing_batch: str | None = None


def given(model: Any, fields: Mapping[str, Any]) -> Given:
    """What `check(model, **fields)` is to examine.

    Args:
        model: A module, a Subject, a tuple (model, batch, optimizer), a Trainer, a function without arguments
            that returns one of these, or a TARGET of the command line.
        fields: The Subject's other fields; those that are not None win over what `model` brings along.

    Raises:
        UserError: It can't be examined, or two arguments were exchanged.
    """
    said = {name: value for name, value in fields.items() if value is not None}
    if isinstance(model, str | os.PathLike):
        return _of_target(os.fspath(model), said)
    if isinstance(model, Subject):
        return Given(_with(model, said))
    if isinstance(model, tuple):
        return Given(_with(subject_of(model, "the given tuple"), said))
    if _is_batch(model):
        raise UserError(
            f"check() takes the model first and the batch second; the first argument is {described(model)}."
        )
    if hasattr(said.get("batch"), "param_groups"):
        raise UserError(
            "check() takes the batch second; the second argument is an optimizer: give it as optimizer=."
        )
    if _is_function(model):
        name = getattr(model, "__name__", "the given function")
        made = called(model, f"{name}()")
        return Given(_with(subject_of(made, f"{name}()"), said), name, _source_of(model))
    return Given(Subject(model, **said))


def _of_target(text: str, said: Mapping[str, Any]) -> Given:
    from vlmdoctor.targets.resolve import resolve

    target = resolve(text)
    return Given(
        _with(target.subject, said),
        text,
        target.file,
        target.facts,
        target.missing_batch if "batch" not in said else None,
    )


def _with(subject: Subject, said: Mapping[str, Any]) -> Subject:
    return dataclasses.replace(subject, **said) if said else subject


def _is_batch(value: Any) -> bool:
    from torch import Tensor

    return isinstance(value, Tensor | Mapping | list) or value is None


def _is_function(value: Any) -> bool:
    """Whether calling it gives what is to be examined; a module can be called too."""
    return inspect.isfunction(value) or inspect.ismethod(value) or inspect.isclass(value)


def _source_of(function: Any) -> Path | None:
    try:
        file = inspect.getsourcefile(function)
    except TypeError:
        return None
    return Path(file) if file is not None and Path(file).is_file() else None
