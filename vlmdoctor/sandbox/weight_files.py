"""Foreign files of weights: an index names files beside it; a safetensors header has a bound."""

from __future__ import annotations

import struct
from pathlib import Path

from vlmdoctor.boundary import Unreadable, is_file, open_regular, parse_json, read_json

MOST_HEADER = 8 << 20  # bytes: of some 80,000 tensors, in one file
_LENGTH = struct.Struct("<Q")


def refuse_header(path: Path) -> None:
    """Raises `Unreadable` for what is no regular file, or whose header can't be one of safetensors.

    Names that come twice are refused here; gaps and overlaps between tensors are, by safetensors.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        start = file.read(_LENGTH.size)
        text = b"" if len(start) < _LENGTH.size else file.read(min(_LENGTH.unpack(start)[0], MOST_HEADER))
    if len(start) < _LENGTH.size:
        raise Unreadable(
            f"{path} can't be loaded: it is no whole safetensors file ({size} bytes are no header)."
        )
    length = _LENGTH.unpack(start)[0]
    if length > size - _LENGTH.size:
        raise Unreadable(
            f"{path} can't be loaded: it is no whole safetensors file (a header of {length:,} bytes claimed, "
            f"and has {size:,} in all)."
        )
    if length > MOST_HEADER:
        raise Unreadable(
            f"{path} can't be loaded: its header has {length:,} bytes, more than are read ({MOST_HEADER:,})."
        )
    try:
        parse_json(text.decode("utf-8"), f"{path} can't be loaded: its header", unique=True)
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path} can't be loaded: its header is not UTF-8 (byte {error.start}).") from error


def shards(index: Path, suffix: str = ".safetensors") -> list[Path]:
    """The files that an index names, in order: of its own folder, regular, and with that ending.

    Links are followed, since caches of downloads consist of them.

    Raises:
        Unreadable: It is no index, or names anything else.
    """
    values = read_json(index)
    named = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise Unreadable(f"the checkpoint's index {index} can't be read: it has no map of names to files.")
    names = sorted(set(named.values()))
    for name in names:
        if Path(name).name != name or "\\" in name or "\0" in name or name in (".", ".."):
            raise Unreadable(
                f"the checkpoint's index {index} names {name[:200]!r}, which is no file of its own folder."
            )
        if not name.endswith(suffix):
            raise Unreadable(
                f"the checkpoint's index {index} names {name[:200]!r}, which is no {suffix} file."
            )
    missing = [name for name in names if not is_file(index.parent / name)]
    if missing:
        others = f" (nor are {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise Unreadable(
            f"the checkpoint's index {index} names {missing[0][:200]}, which is not there{others}."
        )
    return [index.parent / name for name in names]
