"""The one error that is the user's to mend."""

from __future__ import annotations

import re

_LONGEST = 10_000
# Controls, marks that turn or hide text, other separators of lines, half characters, and what is none.
_ACTIVE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
    "\ufdd0-\ufdef\ufffe\uffff\U000e0000-\U000e0fff"
    + "".join(chr((plane << 16) + last) for plane in range(1, 17) for last in (0xFFFE, 0xFFFF))
    + "]"
)


class UserError(Exception):
    """Something the user gave can't be used.

    The message is one plain sentence: what is wrong, where, and what to do about it. Command lines
    print it on standard error and exit with status 2; a traceback is never shown for it. What it quotes
    of files and names is made plain.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(plain(str(message)))


def plain(text: str) -> str:
    """`text` in which nothing steers a terminal: what would is shown as an escape. Lines stay lines."""
    text = _ACTIVE.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text[: _LONGEST + 1])
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def reason_of(error: BaseException) -> str:
    """The first line of what an exception says, or its type where it says nothing; never empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" .:\t")]
    return plain(lines[0]) if lines else type(error).__name__


def whole_reason_of(error: BaseException) -> str:
    """All that an exception says, on one line, or its type; never empty."""
    text = " ".join(str(error).split())
    return plain(text) if text.strip(" .:") else type(error).__name__
