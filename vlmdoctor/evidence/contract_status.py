"""What a run is meant to be, by its contract, and what it is, by what was given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DEPTH = "static"
PROBE = "vlmdoctor.probes.model.contract"


@dataclass(frozen=True, kw_only=True)
class ContractStatus:
    """The terms of a contract, in the words of `vlmdoctor.contract`.

    Attributes:
        expected: What the contract says; empty where there is none.
        seen: What was found; terms that are not known are missing.
    """

    expected: Mapping[str, str] = field(default_factory=dict)
    seen: Mapping[str, str] = field(default_factory=dict)
