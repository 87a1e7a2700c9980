"""What the drawn samples add up to, in words and numbers that every format shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmdoctor.evidence.data import Data, Row
from vlmdoctor.plain_text import plain_line
from vlmdoctor.probes.data.read import ROLES

SHOWN = ("system", "user", "assistant", "stop", "image", "marker", "other", "padding")
assert set(SHOWN) == set(ROLES)


@dataclass(frozen=True)
class Share:
    """How many tokens a role has, and how many of them are supervised."""

    role: str
    tokens: int
    supervised: int

    @property
    def part(self) -> float:
        """The supervised share, 0 to 1."""
        return self.supervised / self.tokens if self.tokens else 0.0


def shares(rows: Sequence[Row]) -> list[Share]:
    """One for each role that occurs."""
    found = [
        Share(
            role,
            sum(row.count(role) for row in rows),
            sum(row.count(role, supervised=True) for row in rows if row.labels is not None),
        )
        for role in SHOWN
    ]
    return [share for share in found if share.tokens]


def stop_line(rows: Sequence[Row], data: Data) -> str:
    """Whether the model learns to stop."""
    rows = [row for row in rows if row.labels is not None]
    if not rows:
        return "no labels were given, so that nothing is known of the stop token"
    stop = data.words.stop_ids[0] if data.words.stop_ids else None
    name = "the stop token" if stop is None else f"the stop token {data.words.named(stop)}"
    if not any(row.roles_known for row in rows) and stop is None:
        return "what the stop token is, is not known"
    there = sum(row.count("stop") for row in rows)
    learned = sum(row.count("stop", supervised=True) for row in rows)
    name = plain_line(name)
    if not there:
        return f"{name} does not occur: the model does not learn to stop"
    if not learned:
        return f"{name} is never supervised: the model does not learn to stop"
    return f"{name} is supervised {learned} of {there} times"


def notes(data: Data) -> list[str]:
    """What is not known, and why."""
    if data.roles_unknown is None:
        return []
    return [plain_line(f"who speaks is not known: {data.roles_unknown}")]


def visible(text: str) -> str:
    """A token's text with line breaks, tabs and control characters made visible."""
    text = text.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    return plain_line("".join(char if char.isprintable() else "·" for char in text))
