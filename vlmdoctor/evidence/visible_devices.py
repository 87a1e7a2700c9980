"""What a value of CUDA_VISIBLE_DEVICES leaves visible, as `torch.cuda._parse_visible_devices` reads it."""

from __future__ import annotations

import re

VARIABLE = "CUDA_VISIBLE_DEVICES"


def sees_nothing(value: str) -> bool:
    """Whether torch sees no GPU at all with this value.

    >>> [sees_nothing(value) for value in ("", "-1", "all", "0,0", "0", "0,1,", "GPU-1f2e")]
    [True, True, True, True, False, False, False]
    """
    if value.startswith(("GPU-", "MIG-")):
        entries = [entry.strip() for entry in value.split(",")]
        return len(set(entries)) < len(entries)
    seen: list[int] = []
    for entry in value.split(","):
        # Only the leading integer of an entry is read; without one it is -1, which ends the list.
        number = re.match(r"[+-]?\d+", entry.strip())
        index = int(number[0]) if number else -1
        if index in seen:
            return True
        if index < 0:
            break
        seen.append(index)
    return not seen
