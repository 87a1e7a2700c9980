"""Hostile texts: what terminals, browsers, job runners, shells, parsers and people are misled by."""

from __future__ import annotations

import random

_TERMINAL = (
    "\x1b[2J\x1b[H",  # clears the screen
    "\x1b]0;hostile title\x07",
    "\x1b]52;c;aG9zdGlsZQ==\x07",  # writes the clipboard
    "\x1b]8;;http://hostile.invalid\x1b\\link\x1b]8;;\x1b\\",
    "\x1b[31mred\x1b[0m",
    "\x1b[8mhidden",
    "\x1b[1A\x1b[2K",  # rewrites the line above
    '\x1bP$q"p\x1b\\',  # asks the terminal to type an answer
    "\x1b[6n",
    "\x1b[?1049h",
    "\x1bc",
    "\x1b",
    "\x9b31m",  # C1: one character for ESC [
    "\x9d0;hostile\x9c",
    "\x90hostile\x9c",
    "\x85next line",
    "\x84",
    "a\rb",
    "error\r\x1b[Kall is well",
    "\x08\x08\x08",
    "\x07",
    "\x0b",
    "\x0c",
    "\x00",
    "\x7f",
    "\x1a",
    "\x04",
    "\x0e\x0f",
)
_RUNNER = (
    "::error::hostile",
    "\n::stop-commands::hostile",
    "x\n::add-mask::a",
    "\r::error file=a::hostile",
    "\r\n::set-output name=a::b",
    "\n  ::group::hostile",
    "\u2028::debug::hostile",
    "\x85::warning::hostile",
    "\n##[error]hostile",
    "##[add-mask]a",
    "##[group]hostile",
    "%0A::error::hostile",
    "\n::save-state name=x::y",
    "a::b,c=d%25",
    "\n##vso[task.setvariable variable=hostile]1",  # Azure
    "\nsection_start:0:hostile\r\x1b[0K",  # GitLab
    "##teamcity[buildStatus status='FAILURE']",
)
_BROWSER = (
    "<script>hostile()</script>",
    "</script><script>hostile()</script>",
    "</style><script>hostile()</script>",
    "</title><script>hostile()</script>",
    "--><script>hostile()</script>",
    "]]><script>hostile()</script>",
    "<img src=http://hostile.invalid/a.png>",
    "<img src=x onerror=hostile()>",
    "<svg onload=hostile()>",
    '" onmouseover="hostile()',
    "' onmouseover='hostile()",
    "javascript:hostile()",
    "<iframe src=javascript:hostile()>",
    "<base href=http://hostile.invalid/>",
    "<meta http-equiv=refresh content=0;url=http://hostile.invalid>",
    "&lt;script&gt;hostile()&lt;/script&gt;",
    "&#60;script&#62;",
    "<!--",
    "<![CDATA[",
    "]]>",
    "<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]>&b;",
    "&amp;&quot;&unknown;",
    "[a](javascript:hostile())",
    "![a](http://hostile.invalid/a.png)",
    "| a | b |",
    "```\nhostile",
    "\n# heading",
    "\n---\n",
    "<details open ontoggle=hostile()>",
)
_MARKUP = (
    "[bold]a[/bold]",
    "[/]",
    "[/bold]",
    "[link=http://hostile.invalid]a[/link]",
    "[red",
    ":smiley:",
    "{0}",
    "{",
    "}",
    "%s%n%d",
    "%",
    "{{ 7 * 7 }}",
    "{% raise %}",
    "${HOME}",
    "$(touch EXECUTED)",
    "`touch EXECUTED`",
    "; touch EXECUTED #",
    "| touch EXECUTED",
    "&& touch EXECUTED",
    "__import__('os').system('touch EXECUTED')",
    "\\",
    "\\x1b[31m",
    "\\u001b",
    "\\N{BELL}",
    "'",
    '"',
    "'''",
    '"""',
    "=cmd|'/c calc'!A0",
    "-",
    "--",
    "--help",
    "@hostile",
    "#",
    "~",
    "*",
    "?",
    "[a-",
    "(((((",
)
_UNICODE = (
    "\u202egnp.exe",
    "\u2066hidden\u2069",
    "\u202d",
    "\u200f\u200e",
    "\u061c",
    "a\u2028b",
    "a\u2029b",
    "\ufeffBOM",
    "\ufffe",
    "\uffff",
    "\ud800",
    "\udc80\udcff",
    "\udfff\ud800",
    "\U000e0041\U000e0042",  # tags, which show nothing
    "\u200b\u200c\u200d",
    "e" + "\u0301" * 400,
    "\u0489" * 50,
    "ﷺ" * 30,
    "日本語テキスト",
    "👩‍👩‍👧‍👦🏴‍☠️",
    "İıſß",
    "аdmin",  # a Cyrillic letter
    "\u00a0\u2000\u3000",
    "\u0000\u0001\u0002",
    "١٢٣",  # digits that int() takes
)
_PATHS = (
    "../../../../etc/passwd",
    "/etc/passwd",
    "/dev/zero",
    "/dev/stdin",
    "/proc/self/environ",
    "file:///etc/passwd",
    "http://hostile.invalid/a",
    "\\\\hostile.invalid\\share",
    "C:\\CON",
    "NUL",
    ".",
    "..",
    "",
    " ",
    "a/",
    "//",
    "a" * 256,
    "a/" * 2100,
    "x" * 5000,
    "a\nb\nc",
    "\n" * 50,
    "\t\t",
)
_NUMBERS = (
    "nan",
    "inf",
    "-inf",
    "1e999",
    "-1",
    "0",
    "1" * 5000,
    "9" * 400,
    "0x10",
    "1_000",
    "1e400",
    "True",
    "None",
)

TEXTS: tuple[str, ...] = (
    *_TERMINAL,
    *_RUNNER,
    *_BROWSER,
    *_MARKUP,
    *_UNICODE,
    *_PATHS,
    *_NUMBERS,
)


def text(rng: random.Random) -> str:
    """One of the texts, at times between plain letters, twice, or joined to another."""
    one = rng.choice(TEXTS)
    match rng.randrange(6):
        case 0:
            return f"model.{one}.weight"
        case 1:
            return one + rng.choice(TEXTS)
        case 2:
            return one * rng.choice((2, 3, 40))
        case _:
            return one


def argument(rng: random.Random) -> str:
    """A text that an argument or a variable can hold: no NUL, and surrogates only for bytes."""
    return as_argument(text(rng))


def as_argument(value: str) -> str:
    """`value` with what the operating system can't pass taken out."""
    raw = value.replace("\0", "").encode("utf-8", "surrogatepass")
    return raw.decode("utf-8", "surrogateescape")[:100_000]


def utf8(value: str) -> bytes:
    """`value` as bytes for a file, lone surrogates included."""
    return value.encode("utf-8", "surrogatepass")


def file_name(rng: random.Random) -> str:
    """A name that a file can have: no slash, at most 255 bytes."""
    return as_file_name(rng.choice(TEXTS))


def as_file_name(value: str) -> str:
    """`value` as the name of a file."""
    raw = value.replace("\0", "").replace("/", "∕").encode("utf-8", "surrogatepass")[:200]
    name = raw.decode("utf-8", "surrogateescape")
    return name if name not in ("", ".", "..") else "unnamed"
