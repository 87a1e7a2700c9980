"""What all pages have in common: the stylesheet, the frame of a page, the card of a finding."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from html import escape as _escaped
from importlib import resources

from vlmdoctor import __version__
from vlmdoctor.finding import Finding
from vlmdoctor.plain_text import COMMAND as _COMMAND
from vlmdoctor.plain_text import plain_lines
from vlmdoctor.reporters.card import ADDRESS, card_of, detail_rows

_HEAD = (
    "<!doctype html>\n<html lang='en' style='color-scheme: light dark'>\n<head>\n<meta charset='utf-8'>\n"
    "<meta name='viewport' content='width=device-width, initial-scale=1'>\n"
)


@functools.cache
def stylesheet(*more: str) -> str:
    """The stylesheet of all pages, and those that a page has beside it, by their places in the package."""
    package = resources.files("vlmdoctor")
    return "".join(
        package.joinpath(name).read_text(encoding="utf-8") for name in ("reporters/page.css", *more)
    )


def document(title: str, body: Iterable[str], *, style: str) -> str:
    """A page that needs no other file and no network."""
    inside = "\n".join(part for part in body if part)
    return inert(
        f"{_HEAD}<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body class='vlmdoctor'>\n{inside}\n"
        f"<footer>Made by vlmdoctor {escape(__version__)}. "
        "This page needs no other file and no network.</footer>\n</body>\n</html>\n"
    )


def inert(page: str) -> str:
    """`page`, whose lines are carried out by nobody who prints it: in a browser it reads the same."""
    if "::" not in page and "##" not in page:
        return page
    return _COMMAND.sub(lambda match: f"{match[1]}&#58;" if match[0] != "#" else "&#35;", page)


def escape(text: str) -> str:
    """`text` as it may be in a page: whatever a model or a file holds, it is text and nothing else."""
    return _escaped(plain_lines(text))


def link(address: str) -> str:
    """A link that tells its target nothing of this page; what is no plain address stays text."""
    if ADDRESS.fullmatch(address) is None:
        return escape(address)
    return f"<a href='{escape(address)}' rel='noopener noreferrer'>{escape(address)}</a>"


def card(finding: Finding) -> str:
    """The card of a finding; measured values and links are folded."""
    shown = card_of(finding)
    parts = [
        f"<section class='finding {shown.severity}'><h3><span>{shown.glyph} {shown.severity}</span>"
        f"{escape(shown.title)} <code>{escape(shown.name)} {escape(shown.code)}</code></h3><dl>"
    ]
    source = f"<pre>{escape(shown.source)}</pre>" if shown.source else ""
    where = f"<code>{escape(shown.place)}</code>" if shown.place else ""
    modules = escape(shown.modules)
    if where and modules:
        modules = f" in {modules}"
    if where or modules:
        parts.append(f"<dt>at</dt><dd>{where}{modules}{source}</dd>")
    texts = [("cause", shown.cause), *(("also", symptom) for symptom in shown.symptoms)]
    parts += [f"<dt>{label}</dt><dd>{escape(text)}</dd>" for label, text in texts if text]
    if shown.fix_words or shown.commands:
        lines = "\n".join(shown.commands)
        block = f"<pre>{escape(lines)}</pre>" if lines else ""
        parts.append(f"<dt>fix</dt><dd>{escape(shown.fix_words)}{block}</dd>")
    parts.append(f"<dt>more</dt><dd><code>{escape(shown.more)}</code></dd></dl>")
    parts.append(_details(finding))
    return "".join(parts) + "</section>"


def _details(finding: Finding) -> str:
    rows = [(label, text) for label, text in detail_rows(finding) if label != "see"]
    cells = "".join(f"<dt>{escape(label)}</dt><dd>{escape(text)}</dd>" for label, text in rows)
    if finding.links:
        cells += f"<dt>see</dt><dd>{'<br>'.join(map(link, finding.links))}</dd>"
    if not cells:
        return ""
    return f"<details><summary>measured values and links</summary><dl>{cells}</dl></details>"


def fold(title: str, rows: Iterable[tuple[str, object]]) -> str:
    """A table that opens; empty without rows."""
    lines = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>" for name, value in rows
    )
    if not lines:
        return ""
    table = f"<div class='scroll'><table>{lines}</table></div>"
    return f"<details><summary>{escape(title)}</summary>{table}</details>"
