"""The report as HTML: a page of its own, and the fragment that a notebook shows."""

from __future__ import annotations

from vlmdoctor.contract import shown
from vlmdoctor.report import Report
from vlmdoctor.reporters.card import summary_parts, tone, withdrawn_lines
from vlmdoctor.reporters.dry_run import dry_run_html
from vlmdoctor.reporters.page_parts import card, document, escape, fold, inert, stylesheet

WORDS = {
    "pass": "✓ no issues found",
    "fail": "✗ findings to act on",
    "incomplete": "! incomplete",
    "warned": "! warnings",
}
# The width of a notebook's cell is the page's, and so are its margins.
IN_A_CELL = ".vlmdoctor { margin: 0; padding: .5rem 0; font-size: 14px; max-width: 60rem; }"


def render(report: Report, *, color: bool, verbose: bool, quiet: bool, width: int) -> str:
    """A self-contained page; colour and width are the browser's matter."""
    title = f"vlmdoctor {report.command} {report.target}"
    return document(title, (_header(report), *_body(report), _details(report)), style=stylesheet())


def fragment(report: Report) -> str:
    """The findings and the summary, with their own style, to stand inside any page."""
    inside = "".join((f"<p class='summary-line {tone(report)}'>{_summary(report)}</p>", *_body(report)))
    return inert(f"<style>{stylesheet()}{IN_A_CELL}</style><div class='vlmdoctor'>{inside}</div>")


def _header(report: Report) -> str:
    return (
        f"<header><div class='crumb'><b>vlmdoctor {escape(report.command)}</b></div>"
        f"<div class='verdict'><span class='pill {tone(report)}'>{WORDS[tone(report)]}</span>"
        f"<h1>{escape(report.target)}</h1><p>{_summary(report)}</p></div></header>"
    )


def _summary(report: Report) -> str:
    return escape(" · ".join(summary_parts(report)))


def _body(report: Report) -> list[str]:
    needed = [(one.question, one.needs) for one in report.coverage if not one.answered]
    rows = "".join(f"<tr><td>{escape(q)}</td><td>hand in {escape(n)}</td></tr>" for q, n in needed)
    return [
        dry_run_html(report.facts),
        *map(card, report.findings),
        *(f"<p>{escape(line)}</p>" for line in withdrawn_lines(report)),
        f"<h2>Not judged</h2><div class='scroll'><table>{rows}</table></div>" if rows else "",
    ]


def _details(report: Report) -> str:
    judged = [(name, "ran") for name in report.ran]
    judged += [(name, f"skipped: {reason}") for name, reason in report.skipped]
    judged += [(name, f"crashed: {error}") for name, error in report.crashed]
    terms = report.facts.get("contract")
    contract = shown(terms["expected"], terms["seen"]).items() if terms else ()
    notes = [("note", text) for text in report.facts.get("not_followed", ())]
    notes += [(name, str(report.facts[name])) for name in ("batch", "weights") if report.facts.get(name)]
    pieces = [
        fold("Contract", contract),
        fold("How it was built", notes),
        fold(f"Checks ({len(report.ran)} ran, {len(report.skipped)} skipped)", judged),
    ]
    return "<h2>Details</h2>" + "".join(pieces) if any(pieces) else ""
