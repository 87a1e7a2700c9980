"""Foreign files are regular, small enough, UTF-8 and not deep, or refused in one sentence."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from vlmdoctor.boundary import Unreadable, is_file, parse_json, read_bytes, read_json, read_text


def pipe(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(10 << 30)


def latin(path: Path) -> None:
    path.write_bytes(b'{"a": "\xff"}')


def deep(path: Path) -> None:
    path.write_text("[" * 100_000 + "]" * 100_000)


def rather_deep(path: Path) -> None:
    path.write_text("[" * 65 + "]" * 65)


def digits(path: Path) -> None:
    path.write_text('{"a": ' + "1" * 6000 + "}")


REFUSED = {
    "missing": (lambda path: None, "can't be opened: no such file"),
    "folder": (Path.mkdir, "is a folder"),
    "pipe": (pipe, "is a named pipe"),
    "socket": (listening, "is a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    "loop": (lambda path: path.symlink_to(path), "can't be opened"),
    "sparse": (sparse, "bytes, more than are read"),
    "latin": (latin, "is not UTF-8"),
    "deep": (deep, "nested more than"),
    "rather deep": (rather_deep, "nested more than"),
    "digits": (digits, "an integer of 6,000 digits"),
    "empty": (Path.touch, "can't be read as JSON"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_small_regular_json_file_is_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    make, said = REFUSED[kind]
    path = tmp_path / "f.json"
    make(path)
    with pytest.raises(Unreadable, match=said) as caught:
        read_json(path)
    assert str(caught.value).count("\n") == 0
    assert str(caught.value).endswith(".")


def test_a_link_to_a_regular_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text('{"a": 1, "a": 2}')
    (tmp_path / "link.json").symlink_to("blob")
    assert is_file(tmp_path / "link.json")
    assert read_json(tmp_path / "link.json") == {"a": 2}
    assert read_text(tmp_path / "link.json") == read_bytes(tmp_path / "blob").decode()


def test_a_name_that_comes_twice_is_refused_where_it_may_not() -> None:
    with pytest.raises(Unreadable, match="'a' twice"):
        parse_json('{"b": {"a": 1, "a": 2}}', "the header", unique=True)


def test_a_name_with_a_null_byte_is_refused() -> None:
    with pytest.raises(Unreadable):
        read_bytes("a\0b")
    assert not is_file("a\0b")
