"""Building from foreign files: nothing is downloaded, no kernel fetched, a text renders the same twice."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import logging
import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

from vlmdoctor.plain_text import plain_lines

_STARTED = time.time()  # the date in a prompt stays that of the day
_LIBRARY = "transformers.integrations.hub_kernels"


@contextlib.contextmanager
def nothing_fetched(*, models: bool = False) -> Iterator[None]:
    """Inside, the hub is offline and transformers gets no kernel from it, whatever a file asks for.

    Models for which transformers fetches kernels by itself take their way in plain torch instead.

    Args:
        models: Whether models are built inside, so that the module of the kernels is imported first.
    """
    from huggingface_hub import constants

    with contextlib.ExitStack() as stack:
        _put(stack, constants, "HF_HUB_OFFLINE", True)
        if models:
            importlib.import_module(_LIBRARY)
        if (kernels := sys.modules.get(_LIBRARY)) is not None:
            _put(stack, kernels, "get_kernel", _refused)
            if hasattr(kernels, "get_kernel_hub"):
                _put(stack, kernels, "get_kernel_hub", _refused)
        stack.enter_context(_plain_log())
        stack.enter_context(_no_compiled_output())
        yield


@contextlib.contextmanager
def _no_compiled_output() -> Iterator[None]:
    """Inside, what compiled code prints goes nowhere: tokenizers prints parts of its file there."""
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()  # what Python has printed before is no part of it
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def _plain_log() -> Iterator[None]:
    """Inside, what transformers logs of a foreign file can't steer the terminal."""

    def plain(record: logging.LogRecord) -> bool:
        record.msg, record.args = plain_lines(record.getMessage()), None
        return True

    handlers = list(logging.getLogger("transformers").handlers)
    for handler in handlers:
        handler.addFilter(plain)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(plain)


@contextlib.contextmanager
def the_same_twice() -> Iterator[None]:
    """Inside, a chat template's clock stands at the program's start, and its choices are always the same.

    So what was tried within limits is what is done without them.
    """
    module = sys.modules.get("transformers.utils.chat_template_utils")
    state = random.getstate()
    random.seed(0)
    try:
        with contextlib.ExitStack() as stack:
            if hasattr(module, "datetime"):
                _put(stack, module, "datetime", _Standing)
            yield
    finally:
        random.setstate(state)


class _Standing:
    """In the place of `datetime.datetime`, as far as templates use it."""

    @staticmethod
    def now(zone: Any = None) -> Any:
        return datetime.datetime.fromtimestamp(_STARTED, tz=zone)


def _refused(*_: Any, **__: Any) -> Any:
    raise FileNotFoundError("kernels are not fetched for a folder that is examined")


def _put(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
