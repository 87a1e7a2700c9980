"""The standard streams of the command line: they take every character, and what they print is not obeyed.

What can't be delivered on standard error changes no outcome. Under GitHub Actions, whose runner carries out
lines that begin with `::`, only the commands that are vlmdoctor's own reach it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from vlmdoctor.plain_text import without_commands

WIDTHS = ("COLUMNS", "LINES", "TERMINAL_WIDTH")


class Stream:
    """A standard stream with care taken of what is written; all else is the stream's own.

    Attributes:
        stream: What it writes to.
        forgiving: Whether a failure to write is passed over, for messages.
        obeyed: Whether the reader carries out workflow commands, so that those of others are broken up.
    """

    def __init__(self, stream: TextIO, *, forgiving: bool, obeyed: bool) -> None:
        self.stream = stream
        self.forgiving = forgiving
        self.obeyed = obeyed
        self._line = ""  # the beginning of the current line, as far as it may still become a command

    def write(self, text: str) -> int:
        """Writes, with workflow commands broken up where they would be carried out."""
        if self.obeyed:
            whole = without_commands(self._line + text)
            if not whole.startswith(self._line):
                whole = f"{self._line} {text}"  # what has been written can only be ended
            self._send(whole[len(self._line) :])
            self._line = _undecided(whole)
        else:
            self._send(text)
        return len(text)

    def write_commands(self, text: str) -> None:
        """Writes workflow commands that are vlmdoctor's own."""
        self._send(text)
        self._line = _undecided(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Writes one text after the other."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Sends what is buffered on its way."""
        try:
            self.stream.flush()
        except (OSError, ValueError):
            if not self.forgiving:
                raise
            drop(self.stream)

    def close(self) -> None:
        """Does nothing: the report is still to come, whatever the user's code closes."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _send(self, text: str) -> None:
        try:
            self.stream.write(text)
        except (OSError, ValueError):
            if not self.forgiving:
                raise
            drop(self.stream)


def prepare() -> None:
    """Puts the streams of the command line in place; a second call changes nothing.

    Terminals read UTF-8 nearly everywhere, whatever the locale says. A stream that was closed is replaced.
    """
    for name in WIDTHS:
        # Rich and Typer take whatever is a number, and make room for it.
        if not re.fullmatch(r"0*[1-9][0-9]{0,3}", os.environ.get(name, "80")):
            del os.environ[name]
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Stream):
            continue
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
        elif hasattr(stream, "reconfigure"):
            try:
                "✓✗×…─█".encode(stream.encoding)
            except (UnicodeError, LookupError):
                stream.reconfigure(encoding="utf-8")
            # A name of a file, or a variable, may hold bytes that are no text at all.
            stream.reconfigure(errors="backslashreplace")
        obeyed = bool(os.environ.get("GITHUB_ACTIONS"))
        if obeyed or name == "stderr":
            stream = Stream(stream, forgiving=name == "stderr", obeyed=obeyed)
        setattr(sys, name, stream)


def write_report(text: str, *, commands: bool) -> None:
    """Prints a report on standard output; `commands` where its lines are workflow commands of our own."""
    stream = sys.stdout
    if commands and isinstance(stream, Stream):
        stream.write_commands(text)
    else:
        stream.write(text)
    stream.flush()


def drop(stream: TextIO) -> None:
    """Sends what is still to be written to nowhere: Python would fail once more when it ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _undecided(text: str) -> str:
    """The end of `text` that decides, with what follows, whether a command begins there."""
    line = text[max(text.rfind("\n"), text.rfind("\r")) + 1 :]
    if not line.strip() or line.strip() == ":":
        return line[-2:]
    return found[0] if (found := re.search(r"##?\w{0,20}\Z", line)) else line[-1:]
