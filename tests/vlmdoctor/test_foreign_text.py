"""Templates, tokenizers and files without an end, or that multiply: the check goes on without them."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.vlmdoctor.test_folder import whole  # noqa: F401 (a fixture)
from vlmdoctor.errors import UserError
from vlmdoctor.targets.resolve import resolve

Spoil = Callable[[Path], None]
BUDGET = 1.5  # seconds
MADE = "made from the configuration; "


def template(text: str) -> Spoil:
    """Another chat template."""
    return lambda folder: (folder / "chat_template.jinja").write_text(text) and None


def doubling(folder: Path) -> None:
    """A normaliser that makes each text a million million times as long."""
    values = json.loads((folder / "tokenizer.json").read_text())
    double = {"type": "Replace", "pattern": {"Regex": "."}, "content": "aaaaaaaa"}
    values["normalizer"] = {"type": "Sequence", "normalizers": [double] * 14}
    (folder / "tokenizer.json").write_text(json.dumps(values))


def huge_images(folder: Path) -> None:
    """Images are resized to a side of 300,000 pixels."""
    values = json.loads((folder / "processor_config.json").read_text())
    settings = values.get("image_processor", values)
    settings["size"] = {"height": 300_000, "width": 300_000}
    settings["do_center_crop"] = False
    (folder / "processor_config.json").write_text(json.dumps(values))


def pipe(name: str) -> Spoil:
    """A named pipe, which nobody writes to, in the place of a file."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def device(name: str) -> Spoil:
    """A file without an end."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("/dev/zero")

    return spoil


def sparse(name: str) -> Spoil:
    """Ten gigabytes that take no room on the disk."""

    def spoil(folder: Path) -> None:
        with (folder / name).open("wb") as file:
            file.truncate(10 << 30)

    return spoil


def listening(name: str) -> Spoil:
    """A socket."""

    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(str(folder / name))

    return spoil


def deep(name: str) -> Spoil:
    """JSON that is nested 100,000 deep."""
    return lambda folder: (folder / name).write_text("[" * 100_000 + "]" * 100_000) and None


def header(length: int, text: bytes = b"", size: int | None = None) -> Spoil:
    """A safetensors file with another header."""

    def spoil(folder: Path) -> None:
        with (folder / "model.safetensors").open("wb") as file:
            file.write(struct.pack("<Q", length) + text)
            if size is not None:
                file.truncate(size)

    return spoil


def tensors(shape: list[int], offsets: list[int]) -> Spoil:
    """A safetensors file whose header says this of its tensor, with 16 bytes of content."""
    text = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}}).encode()
    return header(len(text), text, 8 + len(text) + 16)


def twice(folder: Path) -> None:
    """A tensor comes twice in a header."""
    one = b'"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}'
    text = b"{" + one + b", " + one + b"}"
    header(len(text), text, 8 + len(text) + 16)(folder)


LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
DOUBLE = "{% set n = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}"
# What spoils the processor alone -> what is said of it: the model is examined with another batch.
WITHOUT: dict[str, tuple[Spoil, str]] = {
    "template-loops": (template(LOOP), "took more than 1.5 s"),
    "template-doubles": (template(DOUBLE + "{{ n.s }}"), "took more than"),
    "template-pads": (template("{{ '%0999999999999d' % 1 }}"), "was not used"),
    "tokenizer-doubles": (doubling, "was not used: it"),
    "tokenizer-pipe": (pipe("tokenizer_config.json"), "is a named pipe"),
    "template-device": (device("chat_template.jinja"), "is a device"),
    "template-sparse": (sparse("chat_template.jinja"), "more than are read"),
    "processor-deep": (deep("processor_config.json"), "nested more than"),
    "images-huge": (huge_images, "took more than"),
}
# What spoils the folder -> the sentence.
REFUSED: dict[str, tuple[Spoil, str]] = {
    "config-pipe": (pipe("config.json"), "is a named pipe"),
    "config-socket": (listening("config.json"), "is a socket"),
    "config-device": (device("config.json"), "is a device"),
    "config-sparse": (sparse("config.json"), "more than are read"),
    "config-deep": (deep("config.json"), "nested more than 64 deep"),
    "generation-deep": (deep("generation_config.json"), "nested more than 64 deep"),
    "header-petabytes": (header(1 << 60), "a header of 1,152,921,504,606,846,976 bytes"),
    "header-large": (header(100 << 20, b"{", 200 << 20), "more than are read"),
    "header-none": (lambda folder: (folder / "model.safetensors").write_bytes(b"12") and None, "no header"),
    "offsets-far": (
        tensors([4], [0, 1 << 50]),
        "can't be loaded",
    ),
    "offsets-back": (tensors([4], [16, 0]), "can't be loaded"),
    "offsets-below": (tensors([4], [-16, 0]), "can't be loaded"),
    "shape-huge": (
        tensors([1 << 62], [0, 16]),
        "can't be loaded",
    ),
    "names-twice": (twice, "can't be loaded"),
}


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:  # noqa: F811
    return Path(shutil.copytree(whole, tmp_path / "model"))


@pytest.mark.parametrize("name", WITHOUT)
def test_the_model_is_examined_without_a_processor_that_has_no_bounds(folder: Path, name: str) -> None:
    spoil, said = WITHOUT[name]
    spoil(folder)
    target = resolve(str(folder), budget=BUDGET)
    assert target.facts["batch"].startswith(MADE) and said in target.facts["batch"]
    assert "\n" not in target.facts["batch"]
    assert target.subject.batch["pixel_values"].shape == (2, 3, 28, 28) and target.subject.tokenizer is None


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_is_none_is_one_sentence(folder: Path, name: str) -> None:
    spoil, said = REFUSED[name]
    spoil(folder)
    with pytest.raises(UserError, match=said) as caught:
        resolve(str(folder))
    assert "\n" not in str(caught.value)


def test_the_command_ends_with_status_two_and_without_a_traceback(folder: Path) -> None:
    pipe("config.json")(folder)
    done = subprocess.run(
        [sys.executable, "-m", "vlmdoctor", "check", str(folder), "--depth", "static"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "is a named pipe, not a regular file" in done.stderr
