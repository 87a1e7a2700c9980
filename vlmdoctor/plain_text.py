"""Foreign text made plain: names, messages and values can't steer a terminal, a log or a page.

A file that was downloaded, a module, an exception or a variable of the environment brings its own text along.
What would act instead of being read is shown as a visible escape (`\\x1b`), and length is bounded. It is done
where a finding, a report or an error is made, so that whatever prints them later prints plain text.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

LINE = 2_000  # characters of one line: a name, a message, a value
MOST_SENTENCE = 1_400  # characters of an error's sentence
BLOCK = 20_000  # characters of several lines: commands to paste, a traceback, a fact
DEEPEST = 40
ELLIPSIS = "…"
MOST_BITS = 4_096  # Python refuses to print longer integers, at about 14,000 bits

# Controls (C0, DEL, C1), format characters (bidirectional marks, zero-width, tags, BOM), separators of lines,
# blanks that look like nothing, lone surrogates, selectors that carry hidden bytes, and what is no character.
_ACTIVE = (
    "\x00-\x1f\x7f-\x9f\xad\u034f\u0600-\u0605\u061c\u06dd\u070f\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u2028-\u202e\u2060-\u206f\u2800\u3164\ud800-\udfff\ufdd0-\ufdef\ufe00-\ufe0d\ufeff\uffa0"
    "\ufff0-\ufffb\ufffe\uffff\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    + "".join(f"{chr((plane << 16) | 0xFFFE)}{chr((plane << 16) | 0xFFFF)}" for plane in range(1, 17))
)
# A joiner between two letters of a script that needs it (Persian, the emoji) hides nothing.
_JOINED = "(?<=[^\x00-\u05ff])[\u200c\u200d](?=[^\x00-\u05ff])"
_SUSPECT = f"[{_ACTIVE}]"  # without the conditions of the others, which take longer
_IN_LINE = f"(?!{_JOINED})[{_ACTIVE}]"
_IN_BLOCK = f"(?!{_JOINED})(?![\t\n])[{_ACTIVE}]"
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

# What the runner of GitHub Actions would carry out: after blanks at the start of a line, or (the older form,
# and that of Azure and TeamCity) anywhere in it.
COMMAND = re.compile(r"(?:(?<=[\r\n])|\A)([^\S\r\n]*):(?=:)|#(?=#\w{0,20}\[)")


def plain_line(text: str, most: int = LINE) -> str:
    """`text` as one line of at most `most` characters with nothing active in it."""
    if type(text) is not str:
        text = str.__str__(text)
    if _harmless(text, most):
        return text
    # Escapes only add characters: what lies behind the limit is never shown.
    return _bounded(_compiled(_IN_LINE).sub(_visible, text[: most + 1]), most)


def plain_lines(text: str, most: int = BLOCK) -> str:
    """`text` with its line breaks and tabs kept, and nothing else active in it."""
    if type(text) is not str:
        text = str.__str__(text)
    if _harmless(text, most):
        return text
    text = text[: most + 2].replace("\r\n", "\n")
    return _bounded(_compiled(_IN_BLOCK).sub(_visible, text), most)


def plain_values(value: Any, *, lines: bool = False, depth: int = 0) -> Any:
    """`value` with every text in it made plain, keys as well; the same object where nothing has to change.

    Integers too long to be printed become words. Objects of other kinds are left as they are: they become
    text, and plain, when they are shown.
    """
    if isinstance(value, str):
        # A member of an enumeration is a text of the program's own.
        made = plain_lines(value) if lines else plain_line(value)
        return value if made == value else made
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if value.bit_length() <= MOST_BITS else shown_integer(value)
    if not isinstance(value, Mapping | list | tuple | set | frozenset):
        return value
    if depth > DEEPEST:
        return ELLIPSIS
    if isinstance(value, Mapping):
        pairs = [(key, item) for key, item in value.items()]
        plain = {plain_values(key): plain_values(item, lines=lines, depth=depth + 1) for key, item in pairs}
        same = len(plain) == len(pairs) and all(
            one is key and other is item
            for (one, other), (key, item) in zip(plain.items(), pairs, strict=True)
        )
        return value if same else plain
    items = list(value)
    new = [plain_values(item, lines=lines, depth=depth + 1) for item in items]
    if all(one is other for one, other in zip(new, items, strict=True)):
        return value
    return new if isinstance(value, list) else tuple(new)


def shown_integer(value: int) -> str:
    """An integer as text, whatever its length."""
    bits = value.bit_length()
    return str(value) if bits <= MOST_BITS else f"{'-' if value < 0 else ''}an integer of {bits} bits"


def without_commands(text: str) -> str:
    """`text` with blanks put into what the runner of GitHub Actions would take for its commands."""
    if "::" not in text and "##" not in text:
        return text
    return COMMAND.sub(lambda match: f"{match[0]} ", text)


def text_of(error: BaseException, most: int = BLOCK) -> str:
    """The text of an exception, which may be empty; never raises, whatever its own `__str__` does."""
    try:
        return plain_lines(str.__str__(str(error)).strip(), most)
    except BaseException:
        return "its text can't be read"


def described(error: BaseException, most: int = LINE) -> str:
    """The text of an exception, or the name of its type where it says nothing; never raises, never empty."""
    text = text_of(error, most)
    return text if text.strip(" .:\n\t") else plain_line(type(error).__name__, most)


def first_line(error: BaseException, most: int = 600) -> str:
    """The first line of `described`, without a full stop at its end.

    Where validation wraps the reason, and the first line ends with a colon, the next one belongs to it.
    """
    lines = [line.strip() for line in described(error).split("\n") if line.strip(" .:\t")]
    text = f"{lines[0]} {lines[1]}" if len(lines) > 1 and lines[0].endswith(":") else lines[0]
    return plain_line(text.rstrip("."), most)


def raised(error: BaseException, most: int = 300) -> str:
    """`ValueError: its first line`, or the type alone where there is no text."""
    kind, text = plain_line(type(error).__name__, 100), first_line(error, most)
    return text if text.startswith(kind) else f"{kind}: {text}"


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    """Compiled when it is needed first: most texts are of ASCII, and a command's start needs none of them."""
    return re.compile(pattern)


def _harmless(text: str, most: int) -> bool:
    if len(text) > most:
        return False
    return text.isprintable() if text.isascii() else _compiled(_SUSPECT).search(text) is None


def _visible(match: re.Match[str]) -> str:
    char = match[0]
    code = ord(char)
    if char in _NAMED:
        return _NAMED[char]
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _bounded(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + ELLIPSIS
