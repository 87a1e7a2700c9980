"""Telling from a traceback that a rotary table does not fit the query, and trying the repair."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vlmdoctor.evidence.rotary import Rotary, TableRepair
from vlmdoctor.plain_text import raised as raised_in_words
from vlmdoctor.plain_text import text_of
from vlmdoctor.probes.failure.source_line import line_that_made
from vlmdoctor.probes.failure.traceback import LiveFrame, is_users, line_of, module_names, shown_path
from vlmdoctor.probes.positions.rotary_tables import StoredTable, stored_tables
from vlmdoctor.sandbox.restore import restoring

_TABLE = re.compile(r"(\w*_)?(cos|sin|freqs?|rope|rotary|pos_emb|position_embeddings)(_\w+)?(\[\d\])?")
_QUERY = re.compile(r"(x?[qk]|quer(y|ies)|keys?|([qk]|query|key)_\w+|x|x[12]|xs|t|tensor|\w*states)(\[\d\])?")
_MISMATCH = re.compile(
    r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\) at non-singleton dimension (\d+)"
)
_SIZES = {
    "head_dim": ("head_dim", "head_size", "d_head", "dim_head", "attention_head_size"),
    "num_heads": ("num_attention_heads", "num_heads", "n_heads", "n_head", "nhead", "heads"),
    "hidden_size": ("hidden_size", "n_embd", "d_model", "embed_dim", "hidden_dim", "dim", "hidden"),
}


@dataclass(frozen=True)
class _Clash:
    table: str
    table_width: int
    query: str
    query_width: int


def rotary_of(
    error: BaseException, frames: list[LiveFrame], model: nn.Module, run: Callable[[], Any]
) -> Rotary | None:
    """The rotary table behind `error`; None where no table and query clash in the line that raised it.

    `run` runs the forward pass once more and returns the loss, for trying the repair.
    """
    frames = [frame for frame in frames if not frame.in_torch]
    clash = _clash(error, frames[0]) if frames else None
    if clash is None:
        return None
    sizes = _sizes(frames, model)
    factor, tables = _stored(model, clash, sizes["head_dim"])
    table_width, query_width = clash.table_width * factor, clash.query_width * factor
    if sizes["hidden_size"] is None:
        sizes["hidden_size"] = _hidden_by_shape(frames, table_width)
    names = module_names(model)
    attention = next((frame for frame in frames if frame.module in names), None)
    made = _made_by(model, tables, frames)
    applied = frames[0]
    return Rotary(
        table=clash.table,
        table_width=table_width,
        query=clash.query,
        query_width=query_width,
        **sizes,
        applied_file=shown_path(applied.file),
        applied_line=applied.line,
        applied_in=applied.function,
        module=names[attention.module] if attention and attention.module is not None else None,
        stored_as=tuple(table.name for table in tables),
        built_file=shown_path(made[0]) if made else None,
        built_line=made[1] if made else None,
        built_code=line_of(*made) if made else None,
        repair=_try_repair(model, tables, query_width, run),
    )


def _stored(model: nn.Module, clash: _Clash, head_dim: int | None) -> tuple[int, list[StoredTable]]:
    """(2 where each column stands for two of the head, else 1; the model's tables of that width)."""
    for factor in (1, 2):
        tables = [
            table
            for table in stored_tables(model, clash.table_width * factor)
            if table.kind in ("frequencies", "complex") or table.tensor.shape[-1] == clash.table_width
        ]
        if tables:
            return factor, tables
    # Made on the fly: a query of half a head means that tables of half a head were meant.
    return (2 if head_dim == 2 * clash.query_width and clash.table_width != head_dim else 1), []


def _clash(error: BaseException, frame: LiveFrame) -> _Clash | None:
    tensors = frame.tensors()
    tables = {name: t for name, t in tensors.items() if _TABLE.fullmatch(name) and _is_real(t)}
    if frame.module is not None:
        own = {**vars(frame.module), **frame.module._buffers, **frame.module._parameters}
        tables |= {
            f"self.{name}": t
            for name, t in own.items()
            if isinstance(t, torch.Tensor) and _TABLE.fullmatch(name) and _is_real(t)
        }
    queries = {
        name: t for name, t in tensors.items() if _QUERY.fullmatch(name) and _is_real(t) and t.ndim > 2
    }
    match = _MISMATCH.search(text_of(error))
    if match is None:
        return _clash_asserted(error, tables, queries)
    sizes, dimension = {int(match[1]), int(match[2])}, int(match[3])
    for table_name, table in tables.items():
        for query_name, query in queries.items():
            if dimension != max(query.ndim, table.ndim) - 1 or table.shape[-1] not in sizes:
                continue
            (other,) = sizes - {table.shape[-1]}
            # The query itself, or a half of it.
            if query.shape[-1] in (other, 2 * other):
                return _Clash(table_name, int(table.shape[-1]), query_name, other)
    return None


def _clash_asserted(
    error: BaseException, tables: dict[str, torch.Tensor], queries: dict[str, torch.Tensor]
) -> _Clash | None:
    """Complex tables (Llama's `freqs_cis`) are checked by an assertion before they are applied."""
    if not isinstance(error, AssertionError):
        return None
    for table_name, table in tables.items():
        for query_name, query in queries.items():
            if table.is_complex() and query.is_complex() and table.shape[-1] != query.shape[-1]:
                return _Clash(table_name, 2 * int(table.shape[-1]), query_name, 2 * int(query.shape[-1]))
    return None


def _is_real(tensor: torch.Tensor) -> bool:
    return (tensor.is_floating_point() or tensor.is_complex()) and tensor.ndim > 0


def _sizes(frames: list[LiveFrame], model: nn.Module) -> dict[str, int | None]:
    """head_dim, num_heads and hidden_size from the modules on the way, innermost first, then the model."""
    owners: list[Any] = [frame.module for frame in frames if frame.module is not None]
    owners.append(model)
    found: dict[str, int | None] = {}
    for size, spellings in _SIZES.items():
        found[size] = next((n for owner in owners for n in _numbers(owner, spellings)), None)
    return found


def _numbers(owner: Any, spellings: tuple[str, ...]) -> Iterator[int]:
    config = getattr(owner, "config", None)
    for place in (owner, config, getattr(config, "text_config", None)):
        for spelling in spellings:
            value = place.get(spelling) if isinstance(place, dict) else getattr(place, spelling, None)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                yield value


def _hidden_by_shape(frames: list[LiveFrame], width: int) -> int | None:
    """`width`, if the sequence that attention works on is so wide: then that is the hidden size."""
    for frame in frames[:3]:
        sequences = (t for name, t in frame.tensors().items() if not _TABLE.fullmatch(name))
        if any(t.ndim == 3 and t.shape[-1] == width and t.is_floating_point() for t in sequences):
            return width
    return None


def _made_by(model: nn.Module, tables: list[StoredTable], frames: list[LiveFrame]) -> tuple[str, int] | None:
    """(file, line) in the user's code that made the first of the tables."""
    for table in tables:
        made = line_that_made(model, table.owner, table.attribute)
        if made is not None and is_users(made[0]):
            return made
    return None


def _try_repair(
    model: nn.Module, tables: list[StoredTable], head_dim: int, run: Callable[[], Any]
) -> TableRepair | None:
    if not tables:
        return None
    loss, error = None, None
    with restoring(model):
        for table in tables:
            table.replace(table.rebuilt(head_dim))
        try:
            result = run()
            loss = None if result is None else float(result)
        except Exception as raised:
            error = raised_in_words(raised, 200)
    names = tuple(table.name for table in tables)
    return TableRepair(head_dim=head_dim, theta=tables[0].theta, tables=names, loss=loss, error=error)
