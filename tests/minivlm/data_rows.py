"""A user's rows for the tests: good ones, and one of each kind of bad."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import PIL.Image


def image_bytes(colour: str = "red", size: tuple[int, int] = (6, 4)) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def llava(text: str = "<image>\nwhat?", answer: Any = "a thing", **row: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": answer}]
    return {"conversations": turns, **row}


def folder_of_images(folder: Path, count: int = 3) -> list[str]:
    names = [f"{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        (folder / name).write_bytes(image_bytes(("red", "green", "blue")[i % 3]))
    return names


BAD_ROWS: dict[str, list[Any]] = {
    "not an object": [17, None, "text", [1]],
    "no conversation": [
        {},
        {"image": "0.png"},
        {"conversations": []},
        {"conversations": "not json"},
        {"conversations": {}},
    ],
    "not a turn": [{"conversations": ["hello"]}, {"messages": [None]}],
    "unknown role": [
        {"messages": [{"role": "oracle", "content": "x"}]},
        {"messages": [{"role": [], "content": ""}]},
    ],
    "not text": [
        {"messages": [{"role": "user", "content": 5}]},
        {"messages": [{"role": "user", "content": [{"type": "video"}]}]},
        {"messages": [{"role": "user"}]},
    ],
    "no assistant turn": [{"messages": [{"role": "user", "content": "hello?"}]}],
    "empty answer": [llava("what?", " \n"), llava("what?", None)],
    "no placeholder": [llava("what?", image="0.png")],
    "more placeholders than images": [llava(), llava("<image><image>", image="0.png")],
    "fewer placeholders than images": [llava(image=["0.png", "1.png"])],
    "missing image": [
        llava(image="absent.png"),
        llava(image="x" * 5000),
        llava(image="zero\0byte.png"),
        llava(image=""),
        llava(image=7),
        llava(image=[None]),
        llava(image={"bytes": None, "path": None}),
        llava(image="."),
    ],
    "image is a web address": [llava(image="https://example.org/cat.png")],
}
