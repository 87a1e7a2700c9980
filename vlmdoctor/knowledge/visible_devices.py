"""What a value of CUDA_VISIBLE_DEVICES leaves visible, entry by entry, as torch reads it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

VARIABLE = "CUDA_VISIBLE_DEVICES"
# No machine has more; guesses stay below it.
MANY = 64


@dataclass(frozen=True)
class Entry:
    """One entry of the list.

    Attributes:
        text: As written.
        gpu: The number of the physical GPU that it makes visible; None where it makes none visible.
        fate: What becomes of it, in words.
        harmless: Whether it is as it should be.
    """

    text: str
    gpu: int | None
    fate: str
    harmless: bool = False


@dataclass(frozen=True)
class VisibleDevices:
    """What becomes of a value.

    Attributes:
        value: The value.
        entries: Each entry with its fate.
        visible: The GPUs that torch sees, in its order; None where only CUDA itself can tell (MIG).
        crashes: Whether torch raises ValueError on it.
        meant: The value that was probably meant; None without a guess. `unset` is one of them.
    """

    value: str
    entries: tuple[Entry, ...]
    visible: tuple[int, ...] | None
    crashes: bool = False
    meant: str | None = None

    @property
    def as_written(self) -> bool:
        """Whether every entry does what it says."""
        return not self.crashes and all(entry.harmless for entry in self.entries)


def sees_nothing(value: str) -> bool:
    """Whether torch sees no GPU at all with this value, whatever GPUs there are.

    >>> [sees_nothing(value) for value in ("", "-1", "all", "0,0", "0", "0,1,", "GPU-1f2e")]
    [True, True, True, True, False, False, False]
    """
    reading = read(value)
    return not reading.crashes and reading.visible == ()


def read(value: str, count: int | None = None, uuids: Sequence[str] = ()) -> VisibleDevices:
    """What torch makes of `value` on a machine with `count` GPUs (None: not known) with these UUIDs."""
    if value.startswith(("GPU-", "MIG-")):
        entries, visible = _uuids(value, value[:4], list(uuids))
        crashes = False
    else:
        entries, visible, crashes = _ordinals(value, sys.maxsize if count is None else count)
    return VisibleDevices(
        value, tuple(entries), visible, crashes, meant=_meant(value, count, uuids, entries, crashes)
    )


def _ordinals(value: str, count: int) -> tuple[list[Entry], tuple[int, ...], bool]:
    texts = value.split(",")
    entries: list[Entry] = []
    seen: list[int] = []
    ended = False
    for place, text in enumerate(texts):
        if ended:
            entries.append(Entry(text, None, "never read: the list ended before it"))
            continue
        try:
            number, length = _leading_number(text.strip())
        except ValueError:
            entries.append(Entry(text, None, "torch raises ValueError on it"))
            return entries, (), True
        if number in seen:
            entries.append(Entry(text, None, f"names GPU {number} again, which empties the whole list"))
            rest = [Entry(other, None, "lost with the whole list") for other in texts[place + 1 :]]
            lost = [
                Entry(entry.text, None, "lost: a repeated entry empties the list") for entry in entries[:-1]
            ]
            return [*lost, entries[-1], *rest], (), False
        if number < 0:
            ended = True
            blank = not text.strip()
            last = blank and place == len(texts) - 1 and bool(seen)
            fate = "empty" if blank else "negative" if length else "not a number"
            entries.append(Entry(text, None, f"{fate}: the list ends here", harmless=last))
        else:
            seen.append(number)
            extra = text.strip()[length:]
            fate = f"GPU {number}" + (
                f": of '{text.strip()}' only '{text.strip()[:length]}' is read" if extra else ""
            )
            entries.append(Entry(text, number, fate, harmless=not extra))
    for place, entry in enumerate(entries):
        if entry.gpu is not None and entry.gpu >= count:
            fate = f"there is no GPU {entry.gpu} ({_last(count)}): the list ends here"
            entries[place] = Entry(entry.text, None, fate)
            for later in range(place + 1, len(entries)):
                entries[later] = Entry(entries[later].text, None, "never read: the list ended before it")
            break
    return entries, tuple(entry.gpu for entry in entries if entry.gpu is not None), False


def _last(count: int) -> str:
    return "there are none" if count == 0 else f"the last is {count - 1}"


def _leading_number(text: str) -> tuple[int, int]:
    """(number, its length) as strtoul reads it; (-1, 0) without one; ValueError where torch stumbles."""
    length = 0
    for i, character in enumerate(text):
        if not (character.isdigit() or (i == 0 and character in "+-")):
            break
        length = i + 1
    return (int(text[:length]), length) if length else (-1, 0)


def _uuids(value: str, prefix: str, uuids: list[str]) -> tuple[list[Entry], tuple[int, ...] | None]:
    texts = value.split(",")
    kept: list[str] = []
    for text in texts:
        if text in kept:
            return [Entry(other, None, "lost: a repeated entry empties the list") for other in texts], ()
        if not text.startswith(prefix):
            break
        kept.append(text)
    rest = [
        Entry(text, None, _not_taken(text, prefix) if place == 0 else "never read: the list ended before it")
        for place, text in enumerate(texts[len(kept) :])
    ]
    if rest and not rest[0].text and len(rest) == 1:
        rest = [Entry("", None, "empty: the list ends here", harmless=True)]
    if prefix == "MIG-":
        return [Entry(text, None, "a MIG instance", harmless=True) for text in kept] + rest, None
    if not uuids:
        return [
            Entry(text, None, "not looked up: the GPUs' UUIDs are not known", True) for text in kept
        ] + rest, None
    entries: list[Entry] = []
    seen: list[int] = []
    for place, text in enumerate(kept):
        matches = [i for i, uuid in enumerate(uuids) if uuid.startswith(text)]
        if len(matches) != 1:
            fate = "no GPU has this UUID" if not matches else f"fits {len(matches)} GPUs"
            entries.append(Entry(text, None, f"{fate}: the list ends here"))
            entries += [Entry(t, None, "never read: the list ended before it") for t in kept[place + 1 :]]
            break
        if matches[0] in seen:
            return [Entry(t, None, "lost: a repeated entry empties the list") for t in texts], ()
        seen.append(matches[0])
        entries.append(Entry(text, matches[0], f"GPU {matches[0]}", harmless=True))
    return entries + rest, tuple(seen)


def _not_taken(text: str, prefix: str) -> str:
    if text.strip().startswith(prefix) and text != text.strip():
        return "has a blank in front, and UUIDs are not stripped: the list ends here"
    if not text:
        return "empty: the list ends here"
    return (
        "a number among UUIDs: the list ends here"
        if text.strip().isdigit()
        else "no UUID: the list ends here"
    )


def _meant(
    value: str, count: int | None, uuids: Sequence[str], entries: list[Entry], crashes: bool
) -> str | None:
    """A value that says what this one seems to say, and that torch reads so."""
    stripped = value.strip()
    if all(entry.harmless for entry in entries) and not crashes:
        return None
    if stripped.lower() in ("all", "any", "*"):
        return "unset"
    if stripped in ("", "-1") or stripped.lower() in ("none", "void", "nodevfiles", "null", "no"):
        return None
    bare = re.sub(r"""^[\s"'(\[{]+|[\s"')\]}]+$""", "", value)
    bare = re.sub(r"\b(?:cuda|gpu|device)s?[:=]?\s*(?=\d)", "", bare, flags=re.IGNORECASE)
    bare = re.sub(r"""["']""", "", bare)
    if re.match(r"\s*gpu-", bare, re.IGNORECASE):
        parts = [part.strip() for part in bare.split(",") if part.strip()]
        if not all(part.lower().startswith("gpu-") for part in parts):
            return None
        parts = ["GPU-" + part[4:] for part in parts]
        for i, part in enumerate(parts):
            fitting = [uuid for uuid in uuids if uuid.lower().startswith(part.lower())]
            if len(fitting) == 1:
                parts[i] = fitting[0]
        return _confirmed(",".join(dict.fromkeys(parts)), value, count, uuids)
    span = re.fullmatch(r"\s*(\d{1,3})\s*(?:-|:|\.\.\.?|~|to)\s*(\d{1,3})\s*", bare)
    if span:
        first, last = int(span[1]), int(span[2])
        # 0:4 is Python's way to say 0 to 3; 0:3 on four GPUs may be either, and the list says which is taken.
        if ":" in bare and (count is None or last >= count):
            last -= 1
        if first <= last < MANY:
            return _confirmed(",".join(map(str, range(first, last + 1))), value, count, uuids)
    parts = [part for part in re.split(r"[\s,;|/]+", bare) if part]
    numbers = [match[1] for part in parts if (match := re.fullmatch(r"0*(\d{1,3})(?:\.0*)?", part))]
    if len(parts) == 1 and len(numbers) == 1 and count is not None and int(numbers[0]) >= count:
        number = numbers[0]
        if len(number) > 1 and len(set(number)) == len(number) and all(int(d) < count for d in number):
            return ",".join(number)
        if count == 1 and number == "1":
            return "0"
        return None
    if len(numbers) == len(parts) and numbers:
        return _confirmed(",".join(dict.fromkeys(numbers)), value, count, uuids)
    return None


def _confirmed(guess: str, value: str, count: int | None, uuids: Sequence[str]) -> str | None:
    if guess == value:
        return None
    reading = read(guess, count, uuids)
    return guess if reading.as_written and reading.visible != () else None
