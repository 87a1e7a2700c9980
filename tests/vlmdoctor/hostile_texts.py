"""Texts that act where they are only to be read: in terminals, CI servers, pages and parsers."""

from __future__ import annotations

import re
import unicodedata

TEXTS = (
    # terminals
    "\x1b[31mred",
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil.example\x1b\\link\x1b]8;;\x1b\\",
    "\x1b]52;c;YQ==\x07",
    "\x1bc",
    "\x1b[2J",
    "\x1b[1A\x1b[2K",
    "\x1bP$q\x1b\\",
    "\x1b",
    "\x9b31m",
    "\x9d0;t\x9c",
    "\x90q\x9c",
    "\x84",
    "a\rb",
    "a\x08\x08b",
    "\x07",
    "\x0b",
    "\x0c",
    "\x00",
    "\x7f",
    "\x1a",
    "\x0e",
    "\x85next",
    "a\nb",
    "a\tb",
    # what reads in another order, or not at all
    "a\u202eb",
    "\u2066a\u2069",
    "\u200ea",
    "\u061ca",
    "a\u2028b",
    "a\u2029b",
    "a\u200bb",
    "a\ufeffb",
    "a\xadb",
    "\U000e0041\U000e0042",
    "a\U000e0101",
    "a\u034fb",
    "\u3164",
    "a\u2060b",
    "a\u200db",
    # what is no text
    "\ud800",
    "a\udcffb",
    "\udfff\ud800",
    "\ufdd0",
    "\uffff",
    "\U0001ffff",
    "\U0010fffe",
    # CI servers
    "::stop-commands::x",
    "  ::add-mask::x",
    "\n::error::x",
    "\r::error::x",
    "\r\n\t::group::x",
    "\u2028::debug::x",
    "##[error]x",
    "a ##[set-env name=a]b",
    "##vso[task.setvariable variable=a]b",
    "%0A::error::x",
    "::error,a:b%25",
    "x" * 150 + " ::error::x",
    "x" * 90 + "::error::" + "y" * 90,
    "::" * 60,
    ":" + " " * 90 + "::error::x",
    # pages and tables
    "<script>x()</script>",
    "</style><script>x()</script>",
    "<img src=x onerror=x()>",
    "' onload='x()",
    '" onload="x()',
    "]]><x>",
    "--><x>",
    "<!--",
    "&lt;script&gt;",
    "<![CDATA[",
    "[a](javascript:x)",
    "![a](http://evil.example/a.png)",
    "a|b`c`",
    "```\nx",
    "# h",
    "<https://evil.example>",
    "https://evil.example/|<img src=x>",
    "$x$",
    "\\",
    "{0}%s",
    # the markup of the library that draws
    "[bold]x[/bold]",
    "[/]",
    "[link=http://evil.example]x[/link]",
    ":smiley:",
    "[red",
    "[@click=x]y[/]",
    # length
    "x" * 100_000,
    "\x1b" * 50_000,
    "é" * 100_000,
    "",
)

_COMMAND = re.compile(r"(?:\A|[\r\n])\s*::|##\w*\[")


def assert_plain(text: str, *, lines: bool = True, commands: bool = True) -> None:
    """Nothing in `text` acts on a terminal, a CI server or a reader's eye, and it can be written as UTF-8.

    With `lines`, line breaks and tabs are allowed; with `commands`, none of a CI server's are.
    """
    text.encode("utf-8")
    for char in text:
        if char in "\n\t" and lines:
            continue
        assert unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp"), f"{char!a} in {text[:200]!a}"
        assert ord(char) & 0xFFFE != 0xFFFE and not 0xFDD0 <= ord(char) <= 0xFDEF, f"{char!a}"
    if commands:
        found = _COMMAND.search(text)
        assert found is None, text[max(0, found.start() - 50) : found.end() + 50]
