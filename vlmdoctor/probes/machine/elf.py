"""The dynamic symbols of an ELF library: enough to see whether an extension fits the installed torch."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

_DYNSYM = 11


def undefined(path: Path) -> set[bytes]:
    """The symbols that the library needs from others; empty where the file is no 64-bit ELF library."""
    return _symbols(path, wanted_undefined=True)


def defined(path: Path) -> set[bytes]:
    """The symbols that the library has to offer; empty where the file is no 64-bit ELF library."""
    return _symbols(path, wanted_undefined=False)


def _symbols(path: Path, *, wanted_undefined: bool) -> set[bytes]:
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(data, wanted_undefined)
    except (OSError, ValueError, struct.error):
        return set()


def _read(data: mmap.mmap, wanted_undefined: bool) -> set[bytes]:
    # \x7fELF, 64 bit, little-endian: what every wheel for Linux holds.
    if data[:6] != b"\x7fELF\x02\x01":
        return set()
    start = struct.unpack_from("<Q", data, 0x28)[0]
    size, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQII", data, start + i * size) for i in range(count)]
    for _, kind, _, _, offset, length, link, _ in sections:
        if kind == _DYNSYM and link < len(sections):
            texts = data[sections[link][4] : sections[link][4] + sections[link][5]]
            table = data[offset : offset + length - length % 24]
            return {
                texts[name : texts.index(b"\0", name)]
                for name, _, _, section, _, _ in struct.iter_unpack("<IBBHQQ", table)
                if (section == 0) == wanted_undefined and name
            }
    return set()
