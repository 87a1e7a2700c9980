"""Reading one row of a user's data: from the many shapes of conversations to messages and images.

A row is a mapping, as JSON or a table gives it. What is wrong with it is a `BadRow`, never a crash.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minivlm.data.sample import IMAGE_PLACEHOLDER, Message

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
CONVERSATION_COLUMNS = ("conversations", "conversation", "messages", "texts")
IMAGE_COLUMNS = ("image", "images", "image_bytes")
EXAMPLES_KEPT = 5


class BadRow(Exception):
    """A row that can't be learned from. `reason` is one of a few fixed phrases, `detail` what was seen."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Row:
    """A row whose text was read and found in order; its images were not opened yet."""

    messages: tuple[Message, ...]
    images: tuple[Any, ...]  # paths as written, bytes, {"bytes", "path"} mappings or PIL images


@dataclass
class RowReport:
    """How many rows were read, and which could not be used and why.

    Attributes:
        source: The file or dataset.
        total: All rows.
        reasons: Reason -> number of bad rows.
        examples: Reason -> the first few of them by name, with what was seen.
    """

    source: str
    total: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        return self.reasons.total()

    @property
    def good(self) -> int:
        return self.total - self.bad

    def add(self, name: str, error: BadRow) -> None:
        self.reasons[error.reason] += 1
        kept = self.examples.setdefault(error.reason, [])
        if len(kept) < EXAMPLES_KEPT:
            kept.append(f"{name} ({error.detail})" if error.detail else name)

    def to_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "total": self.total,
            "good": self.good,
            "bad": {
                reason: {"count": count, "examples": self.examples[reason]}
                for reason, count in self.reasons.most_common()
            },
        }

    def __str__(self) -> str:
        lines = [f"{self.source}: {self.good} of {self.total} rows can be used"]
        for reason, count in self.reasons.most_common():
            more = ", ..." if count > len(self.examples[reason]) else ""
            lines.append(f"  {count} x {reason}: {', '.join(self.examples[reason])}{more}")
        return "\n".join(lines)


def read_row(row: Any) -> Row:
    """The messages and images of one row, in which everything was checked but the images themselves.

    Raises:
        BadRow: It can't be used.
    """
    if not isinstance(row, Mapping):
        raise BadRow("not an object", type(row).__name__)
    turns, implied = _turns(row)
    inline: list[Any] = []
    messages = [_message(turn, i, inline) for i, turn in enumerate(turns)]
    images = _images(row) or inline
    if implied and not any(IMAGE_PLACEHOLDER in message["content"] for message in messages):
        placeholders = f"{IMAGE_PLACEHOLDER}\n" * len(images)
        messages[0] = {"role": messages[0]["role"], "content": placeholders + messages[0]["content"]}
    check_messages(messages, len(images))
    return Row(tuple(messages), tuple(images))


def check_messages(messages: Sequence[Message], image_count: int) -> None:
    """Raises `BadRow` unless there is something to learn and one placeholder for each image."""
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if not answers:
        raise BadRow("no assistant turn")
    if not all(answer.strip() for answer in answers):
        raise BadRow("empty answer")
    placeholders = sum(message["content"].count(IMAGE_PLACEHOLDER) for message in messages)
    counts = f"{placeholders} placeholders, {image_count} images"
    if image_count and not placeholders:
        raise BadRow("no placeholder", f"no {IMAGE_PLACEHOLDER} in the text, {image_count} images")
    if placeholders > image_count:
        raise BadRow("more placeholders than images", counts)
    if placeholders < image_count:
        raise BadRow("fewer placeholders than images", counts)


def _turns(row: Mapping[str, Any]) -> tuple[list[Any], bool]:
    """The turns as they are written, and whether the images' placeholders are implied."""
    column = next((name for name in CONVERSATION_COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise BadRow("no conversation", f"none of {', '.join(CONVERSATION_COLUMNS)}")
    turns = row[column]
    if isinstance(turns, str):  # MiniMind-V's tables hold the conversation as JSON text
        try:
            turns = json.loads(turns)
        except (ValueError, RecursionError):
            raise BadRow("no conversation", f"{column} is text that is not JSON") from None
    if not isinstance(turns, list) or not turns:
        raise BadRow("no conversation", f"{column} is not a list of turns")
    if all(isinstance(turn, Mapping) and {"user", "assistant"} <= turn.keys() for turn in turns):
        # Pairs, as in The Cauldron, where the images are understood to come before the first question.
        roles = ("user", "assistant")
        return [{"role": role, "content": pair[role]} for pair in turns for role in roles], True
    return turns, False


def _message(turn: Any, position: int, inline: list[Any]) -> Message:
    if not isinstance(turn, Mapping):
        raise BadRow("not a turn", f"turn {position + 1} is {type(turn).__name__}")
    # Without roles, as in MiniMind-V's first files, user and assistant take turns.
    role = turn.get("from", turn.get("role", ("user", "assistant")[position % 2]))
    if not isinstance(role, str) or role not in ROLES:
        raise BadRow("unknown role", f"{role!r:.40} in turn {position + 1}")
    content = turn.get("value", turn.get("content"))
    if isinstance(content, list):
        content = "\n".join(_part(part, position, inline) for part in content)
    if content is None and ROLES[role] == "assistant":
        raise BadRow("empty answer", f"turn {position + 1}")
    if not isinstance(content, str):
        raise BadRow("not text", f"turn {position + 1} is {type(content).__name__}")
    return {"role": ROLES[role], "content": content}


def _part(part: Any, position: int, inline: list[Any]) -> str:
    """The text of one part of a turn: {"type": "text", "text": ...} or {"type": "image", ...}."""
    if isinstance(part, Mapping):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            return part["text"]
        if part.get("type") in ("image", "image_url"):
            image = next((part[key] for key in ("image", "path", "url", "image_url") if part.get(key)), None)
            if isinstance(image, Mapping) and "url" in image:
                image = image["url"]
            if image is not None:
                inline.append(image)
            return IMAGE_PLACEHOLDER
    raise BadRow("not text", f"a part of turn {position + 1} is neither text nor image")


def _images(row: Mapping[str, Any]) -> list[Any]:
    column = next((name for name in IMAGE_COLUMNS if row.get(name) is not None), None)
    if column is None:
        return []
    images = row[column]
    return list(images) if isinstance(images, list | tuple) else [images]
