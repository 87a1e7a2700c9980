"""Where a user's rows lie: JSON, JSON lines, parquet, a `datasets` dataset, each read as lazily as can be.

A source has all rows by number. `scan()` yields them for checking, cheaply: an image that lies in the table
is replaced by a stand-in, so that its bytes are not read. `row(i)` reads one row whole.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

from minivlm.data.rows import CONVERSATION_COLUMNS, IMAGE_COLUMNS
from minivlm.data.stream import BLOCKS_TOGETHER
from minivlm.errors import UserError, reason_of

STAND_IN = b"an image that was not read yet"
COLUMNS = ("id", *CONVERSATION_COLUMNS, *IMAGE_COLUMNS)
SCAN_ROWS = 1000


class Source(Protocol):
    name: str
    folder: Path
    """Where relative image paths begin."""

    def __len__(self) -> int: ...
    def scan(self) -> Iterator[Any]: ...
    def row(self, i: int) -> Any: ...

    @property
    def block_starts(self) -> list[int]:
        """Row numbers at which runs of rows begin that are read as a whole; empty: any row costs the same."""
        ...


class JsonSource:
    """A file with one JSON list of rows; small beside its images, so that it is held in memory."""

    block_starts: list[int] = []  # noqa: RUF012  (never written to)

    def __init__(self, path: Path) -> None:
        self.name, self.folder = path.name, path.parent
        try:
            with path.open(encoding="utf-8") as file:
                self._rows = json.load(file)
        except (ValueError, RecursionError) as error:
            hint = "; with one row per line it should be called .jsonl" if "Extra data" in str(error) else ""
            raise UserError(f"{path} is not valid JSON: {error}{hint}") from None
        if not isinstance(self._rows, list):
            raise UserError(f"{path} holds no list of rows but one {type(self._rows).__name__}")

    def __len__(self) -> int:
        return len(self._rows)

    def scan(self) -> Iterator[Any]:
        return iter(self._rows)

    def row(self, i: int) -> Any:
        return self._rows[i]


class JsonLinesSource:
    """A file with one JSON object per line, of which only the places of the lines are held in memory."""

    block_starts: list[int] = []  # noqa: RUF012  (never written to)

    def __init__(self, path: Path) -> None:
        self.name, self.folder, self._path = path.name, path.parent, path
        with path.open("rb") as file:
            starts = [0, *accumulate(len(line) for line in file)]
            file.seek(0)
            blank = [not line.strip() for line in file]
        self._starts = [start for start, is_blank in zip(starts, blank, strict=False) if not is_blank]

    def __len__(self) -> int:
        return len(self._starts)

    def scan(self) -> Iterator[Any]:
        with self._path.open("rb") as file:
            for line in file:
                if line.strip():
                    yield _parse(line)

    def row(self, i: int) -> Any:
        try:
            with self._path.open("rb") as file:
                file.seek(self._starts[i])
                return _parse(file.readline())
        except OSError as error:
            raise UserError(f"{self._path} can't be read any more: {reason_of(error)}") from None


class ParquetSource:
    """One or more parquet files, of which a few row groups are in memory at a time."""

    def __init__(self, paths: list[Path]) -> None:
        parquet = _parquet()
        self.name, self.folder = paths[0].name, paths[0].parent
        if len(paths) > 1:
            self.name = f"{paths[0].parent.name} ({len(paths)} parquet files)"
        self._groups: list[tuple[str, int]] = []
        lengths: list[int] = []
        columns: dict[str, None] = {}
        for path in paths:
            try:
                with parquet.ParquetFile(path) as file:
                    metadata, schema = file.metadata, file.schema_arrow
            except (OSError, ValueError) as error:  # pyarrow's errors are among these
                raise UserError(f"{path} can't be read as parquet: {reason_of(error)}") from None
            self._groups += [(str(path), group) for group in range(metadata.num_row_groups)]
            lengths += [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
            columns |= dict.fromkeys(schema.names)
        require_columns(self.name, list(columns))
        self._starts = [0, *accumulate(lengths)]

    def __len__(self) -> int:
        return self._starts[-1]

    @property
    def block_starts(self) -> list[int]:
        return self._starts[:-1]

    def scan(self) -> Iterator[Any]:
        for path, group in self._groups:
            yield from _cheap_rows(_read_group.__wrapped__(path, group))

    def row(self, i: int) -> Any:
        group = bisect_right(self._starts, i) - 1
        table = _read_group(*self._groups[group])
        return table.slice(i - self._starts[group], 1).to_pylist()[0]


class DatasetsSource:
    """A dataset of the `datasets` library, which maps its files into memory by itself."""

    block_starts: list[int] = []  # noqa: RUF012  (never written to)

    def __init__(self, dataset: Any, name: str, folder: Path) -> None:
        import datasets

        require_columns(name, dataset.column_names)
        self.name, self.folder = name, folder
        dataset = dataset.select_columns([column for column in COLUMNS if column in dataset.column_names])
        for column, feature in dataset.features.items():
            # Undecoded, so that a broken image is our bad row and not an exception from inside the library.
            if isinstance(feature, datasets.Image):
                dataset = dataset.cast_column(column, datasets.Image(decode=False))
            elif isinstance(inner := getattr(feature, "feature", None), datasets.Image):
                inner = datasets.Image(decode=False)
                dataset = dataset.cast_column(column, type(feature)(inner))
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def scan(self) -> Iterator[Any]:
        for table in self._dataset.with_format("arrow").iter(batch_size=SCAN_ROWS):
            yield from _cheap_rows(table)

    def row(self, i: int) -> Any:
        return self._dataset[i]


def require_columns(name: str, columns: list[str]) -> None:
    if not set(CONVERSATION_COLUMNS) & set(columns):
        raise UserError(
            f"{name} has no column {' or '.join(CONVERSATION_COLUMNS)}; its columns are {', '.join(columns)}"
        )


class Unreadable(str):
    """A line that is not JSON; being no mapping, it is found and named as a bad row."""


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return Unreadable("not valid JSON")


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError("reading parquet needs pyarrow: pip install 'vlmdoctor[data]'") from None
    return pyarrow.parquet


@lru_cache(maxsize=BLOCKS_TOGETHER + 1)
def _read_group(path: str, group: int) -> Any:
    """One row group as an Arrow table; cached, since samples are read in runs of a few row groups."""
    try:
        with _parquet().ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name in COLUMNS]
            # One thread: DataLoader workers are forked, and thread pools don't survive that.
            return file.read_row_group(group, columns=columns, use_threads=False)
    except (OSError, ValueError) as error:  # pyarrow's errors are among these
        raise UserError(f"row group {group} of {path} can't be read: {reason_of(error)}") from None


def _cheap_rows(table: Any) -> Iterator[Any]:
    """The rows of an Arrow table, in which images are counted from the column's offsets but not copied."""
    import pyarrow as pa
    import pyarrow.compute as pc

    stand_ins: dict[str, list[Any]] = {}
    for name in IMAGE_COLUMNS:
        if name not in table.column_names:
            continue
        column, kind = table.column(name), table.schema.field(name).type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            if pa.types.is_string(kind.value_type) or pa.types.is_large_string(kind.value_type):
                continue
            lengths = pc.list_value_length(column).to_pylist()
            stand_ins[name] = [None if length is None else [STAND_IN] * length for length in lengths]
        elif not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            stand_ins[name] = [STAND_IN if valid else None for valid in column.is_valid().to_pylist()]
    kept = [name for name in table.column_names if name in COLUMNS and name not in stand_ins]
    for i, row in enumerate(table.select(kept).to_pylist()):
        yield row | {name: values[i] for name, values in stand_ins.items()}
