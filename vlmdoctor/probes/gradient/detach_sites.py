"""Which line of source is running, and which one switched gradients off: read off the stack."""

from __future__ import annotations

import ast
import contextlib
import functools
import inspect
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn

from vlmdoctor.probes.failure.traceback import is_users

_NO_GRAD = ("no_grad", "inference_mode", "set_grad_enabled")
_TORCH = str(Path(torch.__file__).parent)
_CUSTOM_FUNCTION = str(Path(_TORCH) / "autograd" / "function.py")
_CHECKPOINT = torch.utils.checkpoint.__file__
_CONTEXTLIB = contextlib.__file__
_HERE = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True)
class Cut:
    """A line at which tensors that have a gradient to come lose it.

    Attributes:
        kind: `detach`, `data`, `no_grad`, `copy` (a tensor made anew from a tensor), `numbers` (numpy or a
            list, of which a tensor is made anew) or `checkpoint` (reentrant checkpointing of inputs that
            require no gradient).
        file: The source file.
        line: The line: that of the `with` or of the decorated function where gradients are switched off.
        function: The function that is wrapped to run without gradients; "" where none is.
    """

    kind: str
    file: str
    line: int
    function: str = ""


def _frames() -> Iterator[types.FrameType]:
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_HERE):
            yield frame
        frame = frame.f_back


def place() -> tuple[str, int] | None:
    """(file, line) of the innermost frame of the user's own code, else of any code but torch's."""
    first = None
    for frame in _frames():
        file = frame.f_code.co_filename
        if is_users(file):
            return file, frame.f_lineno
        if first is None and not file.startswith(_TORCH):
            first = file, frame.f_lineno
        if isinstance(frame.f_locals.get("self"), nn.Module) and first is not None:
            return first  # a library's module cut it: its own line, not that of whoever called it
    return first


def running() -> nn.Module | None:
    """The innermost module whose forward is being run."""
    modules = (frame.f_locals.get("self") for frame in _frames())
    return next((module for module in modules if isinstance(module, nn.Module)), None)


def switching_off() -> Cut | None:
    """Where the calling code switches gradients off; None where it is the inside of an autograd function."""
    for frame in _frames():
        file = frame.f_code.co_filename
        if file == _CHECKPOINT or (file == _CUSTOM_FUNCTION and frame.f_code.co_name == "apply"):
            return None
        if file.startswith(_TORCH):
            wrapped = frame.f_locals.get("func") if frame.f_code.co_name == "decorate_context" else None
            if (cut := _around(wrapped)) is not None:
                return cut
        elif file != _CONTEXTLIB:
            return Cut("no_grad", file, frame.f_lineno)
    return None


def _around(wrapped: Any) -> Cut | None:
    """The cut of a function that is decorated to run without gradients."""
    own: Any = None if wrapped is None else inspect.unwrap(wrapped)
    code = getattr(own, "__code__", None)
    return None if code is None else Cut("no_grad", code.co_filename, code.co_firstlineno, own.__qualname__)


def switched_off() -> Cut | None:
    """What has switched gradients off around the calling code, read from its source, as of inference mode.

    None where autograd itself has.
    """
    inner = None
    for frame in _frames():
        file, line = frame.f_code.co_filename, frame.f_lineno
        if file == _CHECKPOINT or (file == _CUSTOM_FUNCTION and frame.f_code.co_name == "apply"):
            return None  # the inside of an autograd function, which has a backward of its own
        if file.startswith(_TORCH):
            wrapped = frame.f_locals.get("func") if frame.f_code.co_name == "decorate_context" else None
            if (cut := _around(wrapped)) is not None:
                return cut
            continue
        inner = inner or (file, line)
        starts = _no_grad_blocks(file)
        around = [first for first, last in starts if first <= line <= last]
        if around:
            return Cut("no_grad", file, max(around))
    return None if inner is None else Cut("no_grad", *inner)


@functools.lru_cache(maxsize=256)
def _no_grad_blocks(file: str) -> tuple[tuple[int, int], ...]:
    """(first, last) lines of the `with torch.no_grad():` blocks of a file, conditional ones included."""
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
        return ()
    return tuple(
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.With | ast.AsyncWith)
        and any(
            isinstance(part, ast.Attribute | ast.Name)
            and (part.attr if isinstance(part, ast.Attribute) else part.id) in _NO_GRAD
            for item in node.items
            for part in ast.walk(item.context_expr)
        )
    )
