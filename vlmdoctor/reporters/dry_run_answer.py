"""The dry run's answer in one line, and the parts of the memory, which add up to the number in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

# Part -> what a person reads, in the order of the bar: what stays from step to step comes first.
PARTS = {
    "weights": "weights",
    "gathered": "gathered weights",
    "optimizer": "optimizer",
    "buckets": "DDP buckets",
    "gradients": "gradients",
    "activations": "activations",
    "temporary": "temporary",
}
# Bytes of one unit of the last digit that is shown -> unit.
_STEPS = ((10**8, "GB"), (10**5, "MB"), (10**2, "kB"))
_NAMED = 4  # GPUs that the headline names


@dataclass(frozen=True)
class Answer:
    """What the dry run says.

    Attributes:
        state: `fits`, `uncertain`, `too large`, `needs` where no GPU was named, or `unknown`.
        text: The answer in one line, without the glyph.
    """

    state: str
    text: str

    @property
    def glyph(self) -> str:
        """A sign for the state: never that of success where it is not certain."""
        return {"fits": "✓", "too large": "✗", "needs": "•"}.get(self.state, "!")

    @property
    def line(self) -> str:
        """Glyph and text."""
        return f"{self.glyph} {self.text}"


@dataclass(frozen=True)
class Part:
    """A part of the memory at the peak.

    Attributes:
        key: A key of `PARTS`.
        size: Bytes.
        shown: The size in the unit of the total; what is shown of all parts adds up to the total shown.
    """

    key: str
    size: int
    shown: str

    @property
    def label(self) -> str:
        """Its name for a person."""
        return PARTS.get(self.key, self.key)


def answer_of(facts: Mapping[str, Any]) -> Answer:
    """The answer to what a dry run was made for."""
    if "not_possible" in facts:
        return Answer("unknown", f"no dry run: {facts['not_possible']}")
    cost = facts.get("cost")
    if cost is None:
        reason = facts.get("cost_not_possible", "the step raises an error")
        return Answer("unknown", f"cost not known: {reason}")
    gpu = cost.get("gpu")
    return _needs(cost) if gpu is None else _on(gpu, cost)


def _on(gpu: Mapping[str, Any], cost: Mapping[str, Any]) -> Answer:
    peak, uncertain = cost["bytes"]["peak"], gpu.get("uncertain", False)
    needed, room = amount(peak), amount(gpu["room"])
    if needed.split()[1] == room.split()[1]:
        needed = needed.split()[0]
    each = f" on each of {cost['ranks']['world_size']} ranks" if "ranks" in cost else ""
    size = f"{gpu['name']}: {needed} of {room}{each}"
    if uncertain:
        size += " (uncertain)"
    if not gpu["fits"]:
        batch = f", {_batch(gpu)}" if _batch(gpu) else ""
        return Answer("too large", f"{'probably does' if uncertain else 'does'} not fit {size}{batch}")
    found = "".join(f", {text}" for text in (_batch(gpu), speed(gpu["tokens_a_second"])) if text)
    if uncertain:
        return Answer("uncertain", f"barely fits {size}{found}")
    return Answer("fits", f"fits {size}{found}")


def _batch(gpu: Mapping[str, Any]) -> str:
    found = gpu.get("batch")
    if found is None or not found["size"]:
        return ""
    return f"max batch {'' if found['confirmed'] else '~'}{found['size']:,}"


def _needs(cost: Mapping[str, Any]) -> Answer:
    each = f" on each of {cost['ranks']['world_size']} ranks" if "ranks" in cost else ""
    needed = f"needs {amount(cost['bytes']['peak'])}{each}"
    unsure = cost.get("uncertain_on", ())
    sure = [name for name in by_memory(cost.get("fits_on", ())) if name not in unsure]
    if not sure and not unsure:
        return Answer("unknown", f"{needed}: no known GPU has that much")
    parts = []
    if sure:
        rest = len(sure) - _NAMED
        more = f" and {rest} more" if rest > 0 else ""
        parts.append(f"fits {', '.join(sure[:_NAMED])}{more}")
    if unsure:
        parts.append(f"uncertain on {', '.join(by_memory(unsure))}")
    return Answer("needs" if sure else "unknown", f"{needed}: {'; '.join(parts)}")


def by_memory(names: Any) -> list[str]:
    """The GPUs, those with the least memory first."""
    from vlmdoctor.knowledge.gpus import GPUS

    return sorted(names, key=lambda name: GPUS[name].memory)


def speed(tokens_a_second: float | None) -> str:
    """`~1,500 tok/s`: two digits, for the utilisation is assumed; empty where it is not known."""
    if not tokens_a_second:
        return ""
    return f"~{float(f'{tokens_a_second:.2g}'):,.0f} tok/s"


def amount(size: int) -> str:
    """Bytes as they are shown in the headline, such as `141.1 GB`."""
    step, unit = _step_of(size)
    return f"{_digits(_nearest(size, step), step)} {unit}"


def parts_of(cost: Mapping[str, Any]) -> list[Part]:
    """The parts of the peak in the order of the bar; the numbers shown add up to that of the headline."""
    sizes = {key: cost["at_peak"][key] for key in PARTS if cost.get("at_peak", {}).get(key)}
    total = sum(sizes.values())
    step, unit = _step_of(total)
    units = {key: size // step for key, size in sizes.items()}
    # Those that lost the most in rounding down get what is missing.
    lost = sorted(sizes, key=lambda key: sizes[key] % step, reverse=True)
    for key in lost[: _nearest(total, step) - sum(units.values())]:
        units[key] += 1
    return [Part(key, size, f"{_digits(units[key], step)} {unit}") for key, size in sizes.items()]


def _step_of(total: int) -> tuple[int, str]:
    return next(((step, unit) for step, unit in _STEPS if total >= step), (1, "B"))


def _nearest(size: int, step: int) -> int:
    return (2 * size + step) // (2 * step)


def _digits(count: int, step: int) -> str:
    return f"{count / 10:,.1f}" if step > 1 else f"{count:,}"


def spans(parts: list[Part], room: int | None, width: int) -> Iterator[tuple[Part, int, int]]:
    """Each part with the column where its bar begins, and how many it takes: one at least."""
    whole = scale(parts, room)
    before = 0
    for part in parts:
        start, end = (round(size * width / whole) for size in (before, before + part.size))
        start = min(start, width - 1)
        yield part, start, max(end - start, 1)
        before += part.size


def scale(parts: list[Part], room: int | None) -> int:
    """The bytes that the full width stands for; a GPU that is much larger is not drawn."""
    total = sum(part.size for part in parts)
    return max(total, room) if room is not None and room <= _DRAWN * total else total


_DRAWN = 4
