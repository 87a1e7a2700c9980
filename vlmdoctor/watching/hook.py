"""A hook that can be put on anybody's module without being noticed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch


class Hook:
    """Calls `function` and returns None, so that nothing it is hooked to is changed.

    A module is copied and pickled together with its hooks: a copy of this one does nothing, so that an
    averaged copy of a watched model is not watched and a saved model does not carry the watcher along.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        # Traced by torch.compile it must leave nothing behind in the graph.
        if not torch.compiler.is_compiling():
            self._function(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        return contextlib.nullcontext().__exit__

    def __reduce__(self) -> tuple[Any, ...]:
        # Something of the standard library that takes anything and returns None, so that the model can
        # be loaded where this package isn't installed.
        return getattr, (contextlib.nullcontext(), "__exit__")
