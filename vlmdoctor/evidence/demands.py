"""What `check-env --require` asks of a machine."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

from vlmdoctor.errors import UserError

DEPTH = "static"
GIVEN = "nothing was required (--require)"
WORDS = ("gpu", "bf16", "fp8", "nvlink", "torch", "cpu-only")
SIZES = ("vram", "memory", "disk", "shm")
VERSIONS = ("cuda", "driver", "python", "torch")
COUNTS = ("gpus", "cpus")
_UNITS = {"": 10**9, "GB": 10**9, "GIB": 2**30, "MB": 10**6, "MIB": 2**20, "TB": 10**12, "TIB": 2**40}
_UNITS |= {"G": 10**9, "M": 10**6, "T": 10**12}


@dataclass(frozen=True, kw_only=True)
class Demand:
    """One thing that the machine must have.

    Attributes:
        text: As it was written.
        kind: One of the words above.
        amount: How many, or how many bytes.
        version: The least version.
    """

    text: str
    kind: str
    amount: int = 0
    version: str = ""


@dataclass(frozen=True, kw_only=True)
class Demands:
    """All that is asked."""

    demands: tuple[Demand, ...] = ()


def parse(texts: Iterable[str]) -> Demands:
    """The demands in texts such as `2-gpus`, `bf16` and `vram=40GB`, also several in one, with commas.

    Raises:
        UserError: One is of no known form.
    """
    parts = [part.strip() for text in texts for part in text.split(",") if part.strip()]
    if not parts:
        raise UserError(f"--require needs something to require, such as {_forms()}.")
    return Demands(demands=tuple(_demand(part) for part in parts))


def _demand(text: str) -> Demand:
    if match := re.fullmatch(r"(\d{1,5})-gpus?", text, re.IGNORECASE):
        return Demand(text=text, kind="gpus", amount=int(match[1]))
    name, equals, value = (part.strip() for part in text.partition("="))
    name = name.lower()
    if not equals and name in WORDS:
        return Demand(text=text, kind=name)
    if name in COUNTS and re.fullmatch(r"\d{1,5}", value):
        return Demand(text=text, kind=name, amount=int(value))
    if name in SIZES and (match := re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)\s*([A-Za-z]*)", value)):
        if match[2].upper() in _UNITS:
            return Demand(text=text, kind=name, amount=int(float(match[1]) * _UNITS[match[2].upper()]))
        raise UserError(f"--require {text}: '{match[2]}' is no unit; write GB, GiB, MB or TB.")
    if name in VERSIONS and re.fullmatch(r"\d{1,5}(\.\d{1,5}){0,3}", value):
        return Demand(text=text, kind=name, version=value)
    close = difflib.get_close_matches(name, (*WORDS, *SIZES, *VERSIONS, *COUNTS), n=1)
    hint = f" (did you mean '{close[0]}'?)" if close and close[0] != name else ""
    raise UserError(f"--require can't be '{text}'{hint}; known are {_forms()}.")


def _forms() -> str:
    return (
        "gpu, 2-gpus, bf16, fp8, nvlink, cpu-only, vram=40GB, memory=64GB, disk=200GB, shm=8GB, cpus=8, "
        "cuda=12.8, driver=570, torch=2.6, python=3.11"
    )
