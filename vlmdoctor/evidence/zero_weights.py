"""Weights that are all zero and let no gradient through, and what learns once they are not."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "backward"
PROBE = "vlmdoctor.probes.gradient.zero_weights"


@dataclass(frozen=True, kw_only=True)
class ZeroWeights:
    """What was found and tried.

    Attributes:
        zeros: (name, trainable) of tensors that are all zero, and that are frozen or get a gradient of
            exactly zero themselves: one layer that starts at zero gets one that is not.
        woken: Names of trainable parameters whose gradient was exactly zero, and is not with small random
            numbers in place of those zeros.
        still: How many trainable parameters have a gradient of exactly zero.
        reached: How many have one that is not zero.
    """

    zeros: tuple[tuple[str, bool], ...] = ()
    woken: tuple[str, ...] = ()
    still: int = 0
    reached: int = 0
