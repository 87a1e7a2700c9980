"""`roles`, `image_token_id` and `labels_name`: what the user says of a model, checked before it is used."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.knowledge.named_parts import NamedParts
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.subject import Subject, compile_patterns

ROLES = ("vision", "projector", "language", "head")


def parse_roles(table: Any, where: str) -> dict[str, tuple[str, ...]]:
    """Role -> patterns of names; `where` is named in errors.

    Raises:
        UserError: It is no table, names a role that there is not, or has a pattern that is no text.
    """
    if not isinstance(table, Mapping):
        raise UserError(f'{where} must be a table from roles to names, such as {{"projector": "mlp"}}.')
    found = {}
    for role, patterns in table.items():
        if role not in ROLES:
            close = difflib.get_close_matches(str(role), ROLES, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else f"; choose from {', '.join(ROLES)}"
            raise UserError(f"{where}: there is no role '{role}'{hint}.")
        given = [patterns] if isinstance(patterns, str) else patterns
        if not isinstance(given, Iterable) or isinstance(given, Mapping | bytes):
            raise UserError(f"{where}: '{role}' must be a name or a list of names, not {patterns!r}.")
        names = tuple(given)
        if not names or not all(isinstance(name, str) and name.strip() for name in names):
            raise UserError(f"{where}: '{role}' must be a name or a list of names, not {patterns!r}.")
        found[role] = names
    return found


def parse_image_token_id(value: Any, where: str) -> int:
    """A token id; raises `UserError` for what is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise UserError(f"{where} must be a token id, a whole number from 0 on, not {value!r}.")
    return value


def parse_labels_name(value: Any, where: str) -> str:
    """A name of the batch's; raises `UserError` for what is no text."""
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} must be a name in the batch, not {value!r}.")
    return value


def statements(subject: Subject) -> NamedParts:
    """What `subject` says of its model.

    Raises:
        UserError: A value makes no sense, a pattern matches nothing, or the batch lacks the labels.
    """
    pairs = []
    table = {} if subject.roles is None else parse_roles(subject.roles, "roles")
    names = _names(subject.model) if table else []
    for role, patterns in table.items():
        for text, pattern in compile_patterns(patterns).items():
            if not any(map(pattern.search, names)):
                model = type(subject.model).__name__
                raise UserError(f"roles: '{text}' ({role}) matches no parameter or module of {model}.")
            pairs.append((role, pattern))
    token = subject.image_token_id
    labels = subject.labels_name
    if labels is not None:
        labels = parse_labels_name(labels, "labels_name")
        if isinstance(subject.batch, Mapping) and labels not in subject.batch:
            raise UserError(
                f"labels_name: the batch has no '{labels}'; it has {', '.join(map(str, subject.batch))}."
            )
    return NamedParts(
        roles=tuple(pairs),
        image_token_id=None if token is None else parse_image_token_id(token, "image_token_id"),
        labels=labels,
    )


def _names(model: Any) -> list[str]:
    modules = [name for name, _ in model.named_modules() if name]
    parameters = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    return [*(canonical_name(f"{name}.").rstrip(".") for name in modules), *map(canonical_name, parameters)]
