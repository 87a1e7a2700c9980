"""What is known of a model's parts: what the user says of them, and for the rest what is measured."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.wiring import Wiring
from vlmdoctor.knowledge.named_parts import NamedParts, naming
from vlmdoctor.sandbox.signals import raise_if_interrupted
from vlmdoctor.statements import statements
from vlmdoctor.subject import Subject


def measured(said: NamedParts, gather: Gatherer) -> tuple[NamedParts, dict[str, str]]:
    """`said` with what is measured in its gaps, and both in words. Use while `said` is in force.

    Where the measurement fails, its gaps stay: the rules that ask for it say so.
    """
    wiring: Wiring | None = None
    try:
        wiring = gather(Wiring)
    except Exception as reason:
        if not isinstance(reason, Unavailable):
            raise_if_interrupted()
    return completed(said, wiring), in_words(said, wiring)


def known_parts(subject: Subject) -> NamedParts:
    """The same of a subject by itself: what it says, and what is measured in the gaps."""
    said = statements(subject)
    with naming(said):
        return measured(said, Gatherer(subject))[0]


def completed(said: NamedParts, wiring: Wiring | None) -> NamedParts:
    """`said` with what was measured in its gaps."""
    if wiring is None:
        return said
    roles = tuple((role, re.compile(rf"^{re.escape(name)}(?:\.|$)")) for name, role in wiring.roles)
    token = said.image_token_id
    return dataclasses.replace(
        said,
        roles=(*said.roles, *roles),
        image_token_id=wiring.image_token_id if token is None else token,
        embedding_rows=wiring.embedding_rows,
        head_rows=wiring.head_rows,
        padding_id=wiring.padding_id,
        ignored=wiring.ignored,
        images_of_rows=wiring.images_of_rows,
    )


def in_words(said: NamedParts, wiring: Wiring | None) -> dict[str, str]:
    """Part -> what it is and how that is known."""
    found: dict[str, list[str]] = {}
    for role, pattern in said.roles:
        found.setdefault(role, []).append(f"{_plain(pattern)} (given)")
    for name, role in () if wiring is None else wiring.roles:
        found.setdefault(role, []).append(f"{name} (measured)")
    words = {role: ", ".join(names) for role, names in found.items()}
    values: Mapping[str, Any] = {} if wiring is None else dataclasses.asdict(wiring)
    for key, own in (("image_token_id", said.image_token_id), ("labels", said.labels)):
        if own is not None:
            words[key] = f"{own} (given)"
        elif values.get(key) is not None:
            words[key] = f"{values[key]} (measured)"
    for key in ("embedding_rows", "head_rows", "padding_id"):
        if values.get(key) is not None:
            words[key] = f"{values[key]} (measured)"
    return words


def _plain(pattern: re.Pattern[str]) -> str:
    """`mlp` of the pattern that was compiled of it."""
    body = pattern.pattern.removeprefix(r"(?:^|\.)").removesuffix(r"(?:\.|$)")
    return body.replace(".*", "*").replace("\\", "")
