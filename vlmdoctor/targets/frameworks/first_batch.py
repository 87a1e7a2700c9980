"""The first batch of the user's data loader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.targets.target import user_code_errors


def first_batch(loader: Any, source: str) -> Any:
    """The first batch of a loader, or of each in a list or mapping of loaders; no random state is moved.

    Raises:
        UserError: There is none, or reading it raised.
    """
    from vlmdoctor.sandbox.restore import same_random_states

    if isinstance(loader, Mapping):
        return {key: first_batch(one, f"{source} ({key})") for key, one in loader.items()}
    if isinstance(loader, list | tuple) and loader and all(hasattr(one, "dataset") for one in loader):
        return [first_batch(one, source) for one in loader]
    with same_random_states(), user_code_errors(f"reading a batch of {source}"):
        for batch in loader:
            return batch
    raise UserError(f"{source} gives no batch: it is empty.")


def on_device_of(model: Any, batch: Any) -> Any:
    """`batch` where the model's first parameter is."""
    from vlmdoctor.sandbox.call import moved

    parameter = next(iter(model.parameters()), None)
    return batch if parameter is None or parameter.is_meta else moved(batch, parameter.device)
