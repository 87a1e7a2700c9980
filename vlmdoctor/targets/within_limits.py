"""A folder's tokenizer, template and processor, tried in a child with limits before they are used here."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.sandbox.closed import nothing_fetched, the_same_twice
from vlmdoctor.sandbox.limited import SECONDS, OutOfBounds, limited
from vlmdoctor.targets.folder_files import refuse_odd_files

# What reading a processor imports, so that the child does not import it for itself.
_IMPORTED = (
    "transformers.utils.chat_template_utils",
    "transformers.models.auto.processing_auto",
    "PIL.Image",
)


def bounded(folder: Path, work: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What `work` returns, which reads and uses the folder's processor; it is tried in a child first.

    Raises:
        UserError: It took too long or too much memory, asked for a network, or raised; the message says so.
    """
    refuse_odd_files(folder)
    for name in _IMPORTED:
        importlib.import_module(name)

    def closed() -> Any:
        with nothing_fetched(), the_same_twice():
            return work()

    def tried() -> None:
        closed()

    try:
        limited(tried, seconds=seconds)
    except OutOfBounds as reason:
        if reason.raised:
            raise UserError(f"{reason}.") from reason
        raise UserError(f"the processor in {folder} was not used: {reason}.") from reason
    return closed()
