"""Building from foreign files: nothing is downloaded, no kernel fetched, a text renders the same twice."""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator
from typing import Any

_LIBRARY = "transformers.integrations.hub_kernels"


@contextlib.contextmanager
def nothing_fetched() -> Iterator[None]:
    """Inside, the hub is offline and transformers gets no kernel from it, whatever a file asks for.

    Models for which transformers fetches kernels by itself take their way in plain torch instead.
    """
    from huggingface_hub import constants

    with contextlib.ExitStack() as stack:
        _put(stack, constants, "HF_HUB_OFFLINE", True)
        import transformers.modeling_utils  # noqa: F401 (it imports the module of the kernels)

        if (kernels := sys.modules.get(_LIBRARY)) is not None:
            _put(stack, kernels, "get_kernel", _refused)
            if hasattr(kernels, "get_kernel_hub"):
                _put(stack, kernels, "get_kernel_hub", _refused)
        yield


@contextlib.contextmanager
def the_same_twice() -> Iterator[None]:
    """Inside, a chat template's clock stands still and its choices are those of the last time.

    So that what was tried within limits is what is done without them.
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
        import datetime

        return datetime.datetime(2025, 1, 1, tzinfo=zone)


def _refused(*_: Any, **__: Any) -> Any:
    raise FileNotFoundError("kernels are not fetched for a folder that is examined")


def _put(stack: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, value)
