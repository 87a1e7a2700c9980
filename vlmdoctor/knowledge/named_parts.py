"""What the user, or a measurement, says of a model whose names and configuration don't say it.

`naming(parts)` puts it in force for a block; `current()` is asked wherever a role, a placeholder or a number
of rows is looked up, so that one statement reaches every probe and rule.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class NamedParts:
    """Statements about one model and its batch; None, or empty, where there is none.

    Attributes:
        roles: (role, pattern) pairs: the first pattern that is found in a canonical name decides its role.
        image_token_id: The id that stands for one image feature in the text.
        labels: Name of the labels in the batch.
        embedding_rows: Rows of the input embedding.
        head_rows: Rows of the output head.
        padding_id: The id of padding.
        ignored: The label that the loss leaves out.
        images_of_rows: How many images each row of the batch has.
    """

    roles: tuple[tuple[str, re.Pattern[str]], ...] = ()
    image_token_id: int | None = None
    labels: str | None = None
    embedding_rows: int | None = None
    head_rows: int | None = None
    padding_id: int | None = None
    ignored: int | None = None
    images_of_rows: tuple[int, ...] = ()


NOTHING = NamedParts()
_CURRENT: ContextVar[NamedParts] = ContextVar("named parts", default=NOTHING)


def current() -> NamedParts:
    """What is said in the block that runs."""
    return _CURRENT.get()


@contextlib.contextmanager
def naming(parts: NamedParts) -> Iterator[None]:
    """Inside, `current()` is `parts`."""
    token = _CURRENT.set(parts)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def said_role(name: str) -> str | None:
    """The role that was said of a canonical name, or None."""
    return next((role for role, pattern in _CURRENT.get().roles if pattern.search(name)), None)
