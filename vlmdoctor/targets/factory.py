"""From what a factory returned to the Subject that is examined."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.subject import Subject
from vlmdoctor.targets.target import user_code_errors


def subject_of(made: Any, source: str) -> Subject:
    """The Subject in what a factory returned: a module, a tuple with batch and optimizer, or a Subject."""
    from torch import nn

    from vlmdoctor.targets.frameworks.adapt import adapted

    if isinstance(made, Subject):
        subject = made
    elif is_model(made):
        subject = Subject(made)
    elif isinstance(made, tuple) and len(made) in (2, 3) and is_model(made[0]):
        subject = Subject(made[0], made[1], optimizer=made[2] if len(made) == 3 else None)
    else:
        raise UserError(
            f"{source} returned {described(made)}; it should return a module, (model, batch), "
            f"(model, batch, optimizer), a Trainer or a vlmdoctor.Subject."
        )
    subject = adapted(subject, source)
    if not isinstance(subject.model, nn.Module) and callable(subject.model):
        subject.model = called(subject.model, f"the model of {source}")
        subject = adapted(subject, source)
    if not isinstance(subject.model, nn.Module):
        raise UserError(f"the model of {source} is {described(subject.model)}, not a torch module.")
    return subject


def is_model(value: Any) -> bool:
    from torch import nn

    from vlmdoctor.targets.frameworks.adapt import is_adaptable

    return isinstance(value, nn.Module) or is_adaptable(value)


def described(value: Any) -> str:
    if value is None:
        return "nothing (None)"
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return f"an object of type {type(value).__name__}"


def called(factory: Any, source: str) -> Any:
    parameters: Collection[inspect.Parameter]
    try:
        parameters = inspect.signature(factory).parameters.values()
    except Exception:  # of an object of the user's own, whose attributes may do anything
        parameters = []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
    if needed:
        raise UserError(
            f"{source} needs arguments ({', '.join(needed)}); name a function that can be called without any."
        )
    with user_code_errors(source):
        return factory()
