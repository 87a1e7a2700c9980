"""Versions, to compare."""

from __future__ import annotations

import re


def numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, to compare by: 410.129 is newer than 410.48.

    >>> numbers("2.13.0+cu130"), numbers("410.129") > numbers("410.48"), numbers("dev")
    ((2, 13, 0), True, ())
    """
    match = re.match(r"\d{1,9}(?:\.\d{1,9})*", version.strip())
    return tuple(int(part) for part in match[0].split(".")) if match else ()
