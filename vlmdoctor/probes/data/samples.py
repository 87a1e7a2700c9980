"""A few samples of a dataset, through the collator, without changing either."""

from __future__ import annotations

import copy
import inspect
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmdoctor.evidence.data import Trouble
from vlmdoctor.plain_text import text_of
from vlmdoctor.probes.failure.traceback import frames_of, place_of, shown_path
from vlmdoctor.probes.model.training_args import setting
from vlmdoctor.sandbox.restore import same_random_states

SAMPLES, TOGETHER = 16, 4
SECONDS = 4.0
LABELS = ("labels", "label", "label_ids")


def batches(
    dataset: Any, collator: Any, model: Any, arguments: Any, wanted: int = SAMPLES
) -> tuple[list[tuple[list[str], Any]], list[Trouble]]:
    """(names of the samples, their batch) for some samples spread over the dataset, and what went wrong.

    Without a collator each sample that has `input_ids` is a batch of its own.
    """
    made: list[tuple[list[str], Any]] = []
    troubles: list[Trouble] = []
    with same_random_states():
        samples = list(_samples(dataset, wanted, troubles))
        size = TOGETHER if collator is not None else 1
        collate = collator or _alone
        start = time.monotonic()
        for i in range(0, len(samples), size):
            if time.monotonic() - start > SECONDS:
                break
            chunk = samples[i : i + size]
            batch, trouble = _collated(collate, chunk, model, arguments)
            if trouble is not None:
                troubles.append(trouble)
            if batch is not None:
                made.append(([name for name, _ in chunk], batch))
    return made, troubles


def _samples(dataset: Any, wanted: int, troubles: list[Trouble]) -> Iterator[tuple[str, Any]]:
    """Samples by name; one that can't be read is a trouble, and ends the search after a few."""
    start = time.monotonic()
    for name, read in _readers(dataset, wanted):
        if time.monotonic() - start > SECONDS or len(troubles) > 2:
            return
        try:
            yield name, read()
        except StopIteration:
            return
        except Exception as error:  # anybody's dataset
            troubles.append(_trouble(f"{name} of the dataset", error))


def _readers(dataset: Any, wanted: int) -> Iterator[tuple[str, Any]]:
    if hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__"):
        length = len(dataset)
        for k in range(min(wanted, length)):
            i = k * length // min(wanted, length)
            yield f"sample {i}", lambda i=i: dataset[i]
        return
    iterator = iter(dataset)
    if iterator is dataset:  # reading from it would take samples away from the training
        return
    for i in itertools.islice(itertools.count(), wanted):
        yield f"sample {i}", lambda: next(iterator)


def _alone(samples: Sequence[Any]) -> Any:
    sample = samples[0]
    return sample if isinstance(sample, Mapping) and "input_ids" in sample else None


def _collated(
    collate: Any, chunk: list[tuple[str, Any]], model: Any, arguments: Any
) -> tuple[Any, Trouble | None]:
    """The batch of some samples; where they can't be collated, which of them, and why."""
    kept = _kept_columns(chunk[0][1], model, arguments)
    try:
        return collate([_own(sample, kept) for _, sample in chunk]), None
    except Exception as error:
        first = error
    if kept is not None:
        try:
            collate([_own(sample, None) for _, sample in chunk])
        except Exception:
            pass
        else:
            columns = tuple(str(key) for key in chunk[0][1] if key not in kept)
            return None, _trouble(chunk[0][0], first, columns)
    elif (fewer := _kept_columns(chunk[0][1], model, {"remove_unused_columns": True})) is not None:
        # What the Trainer would take away may be what the collator can't take.
        try:
            return collate([_own(sample, fewer) for _, sample in chunk]), None
        except Exception:
            pass
    for name, sample in chunk:
        try:
            collate([_own(sample, kept)])
        except Exception as error:
            return None, _trouble(name, error)
    names = chunk[0][0] if len(chunk) == 1 else f"{chunk[0][0]} to {chunk[-1][0].split()[-1]} together"
    return None, _trouble(names, first)


def _kept_columns(sample: Any, model: Any, arguments: Any) -> set[str] | None:
    """The columns that the Trainer would leave, by the training arguments; None where it takes none away."""
    if not setting(arguments, "remove_unused_columns") or not isinstance(sample, Mapping):
        return None
    inner = getattr(model, "get_base_model", lambda: model)()
    parameters = inspect.signature(inner.forward).parameters
    kept = {key for key in sample if key in parameters or key in LABELS}
    return kept if kept and len(kept) < len(sample) else None


def _own(sample: Any, kept: set[str] | None) -> Any:
    """A copy, so that a collator that takes a sample apart does so to the copy."""
    if kept is not None:
        sample = {key: value for key, value in sample.items() if key in kept}
    try:
        return copy.deepcopy(sample)
    except Exception:  # such as a lazily opened file
        return copy.copy(sample)


def _trouble(name: str, error: Exception, columns: tuple[str, ...] = ()) -> Trouble:
    place = place_of(frames_of(error))
    first_line = text_of(error, 200).partition("\n")[0]
    return Trouble(
        name=name,
        error=f"{type(error).__name__}{f': {first_line}' if first_line else ''}",
        file=shown_path(place.file) if place else None,
        line=place.line if place else None,
        columns=columns,
    )
