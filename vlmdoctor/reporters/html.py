"""The report as HTML: a page of its own, and the fragment that a notebook shows."""

from __future__ import annotations

from html import escape

from vlmdoctor.finding import Finding
from vlmdoctor.plain_text import COMMAND as _COMMAND
from vlmdoctor.report import Report
from vlmdoctor.reporters.card import GLYPHS, rows_of, summary_line, withdrawn_lines
from vlmdoctor.reporters.dry_run import dry_run_html

STYLE = """
.vlmdoctor{font:14px/1.5 system-ui,sans-serif;max-width:60rem}
.vlmdoctor section{border-left:4px solid #888;margin:1rem 0;padding:.1rem 1rem}
.vlmdoctor section.error{border-color:#c62828}.vlmdoctor section.warning{border-color:#b26a00}
.vlmdoctor section.info{border-color:#1565c0}
.vlmdoctor h3{font-size:1rem;margin:.3rem 0}.vlmdoctor h3 code{font-weight:normal;opacity:.7}
.vlmdoctor dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:.3rem 0}
.vlmdoctor dt{opacity:.6}.vlmdoctor dd{margin:0;white-space:pre-wrap;overflow-wrap:anywhere}
"""


def render(report: Report, *, color: bool, verbose: bool, quiet: bool, width: int) -> str:
    """A self-contained page; colour and width are the browser's matter."""
    title = f"vlmdoctor {escape(report.command)} {escape(report.target)}"
    return inert(
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{title}</title>"
        "<style>:root{color-scheme:light dark}body{margin:2rem;font-family:system-ui,sans-serif}</style>"
        "</head><body>"
        f"<h1>{title}</h1>{fragment(report)}</body></html>\n"
    )


def inert(page: str) -> str:
    """`page`, whose lines are carried out by nobody who prints it: in a browser it reads the same."""
    if "::" not in page and "##" not in page:
        return page
    return _COMMAND.sub(lambda match: f"{match[1]}&#58;" if match[0] != "#" else "&#35;", page)


def fragment(report: Report) -> str:
    """The findings and the closing line, with their own style, to stand inside any page."""
    findings = "".join(section(finding) for finding in report.findings)
    answer = dry_run_html(report.facts)
    findings += "".join(f"<p>{escape(line)}</p>" for line in withdrawn_lines(report))
    closing = f"<p>{escape(summary_line(report))}</p>"
    return inert(f"<style>{STYLE}</style><div class='vlmdoctor'>{answer}{findings}{closing}</div>")


def section(finding: Finding) -> str:
    """One finding as a `<section>`."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows_of(finding))
    return (
        f"<section class='{finding.severity}'><h3>{GLYPHS[finding.severity]} {finding.severity}: "
        f"{escape(finding.message)} <code>{escape(finding.rule)} {escape(finding.code)}</code></h3>"
        f"<dl>{rows}</dl></section>"
    )
