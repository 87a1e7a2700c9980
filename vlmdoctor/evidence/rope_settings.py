"""Rotary embeddings as the configuration sets them, for a model without weights: dims and frequencies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

DEPTH = "shapes"
PROBE = "vlmdoctor.probes.positions.rope_settings"


@dataclass(frozen=True, kw_only=True)
class Rope:
    """The frequencies of one rotary embedding.

    Attributes:
        where: The module's canonical name.
        path: Of the settings in the configuration, such as `text_config.rope_parameters`.
        part: `text` or `vision`.
        layers: The kind of layers that use them, where there are several kinds.
        kind: `default`, `yarn`, `llama3` and so on.
        head_dim: Numbers in a head; None where the configuration does not say.
        rotated: How many of them turn.
        theta: The base.
        slowest: Tokens in a full turn of the slowest pair; None where it is no number.
        finite: Whether every frequency is a positive number.
        sections: mRoPE: pairs for time, height and width.
        settings: The settings as given.
        context: Positions that the model may have; None where it does not say.
    """

    where: str
    path: str
    part: str
    layers: str = ""
    kind: str = "default"
    head_dim: int | None = None
    rotated: int = 0
    theta: float | None = None
    slowest: float | None = None
    finite: bool = True
    sections: tuple[int, ...] = ()
    settings: tuple[tuple[str, Any], ...] = ()
    context: int | None = None


@dataclass(frozen=True, kw_only=True)
class RopeSettings:
    """All rotary embeddings of a model, alike ones once."""

    ropes: tuple[Rope, ...] = ()
