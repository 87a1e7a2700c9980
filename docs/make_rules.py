"""Writes docs/rules.md from the rules' own docstrings: `python docs/make_rules.py`."""

from __future__ import annotations

from pathlib import Path

from vlmdoctor.rulebook import all_rules

PAGE = Path(__file__).parent / "rules.md"


def page() -> str:
    """The page: a table of all rules, then the docstring of each."""
    rules = all_rules()
    lines = [
        "# Rules",
        "",
        "Made from the rules' own docstrings; `vlmdoctor rule NAME` shows the same text.",
        "",
        "| rule | code | finds |",
        "|---|---|---|",
        *(f"| [{r.name}](#{r.name}) | {r.code} | {r.summary} |" for r in rules),
        "",
    ]
    for candidate in rules:
        # One level down, since the page's own sections are the rules.
        body = candidate.doc.replace("\n## ", "\n### ")
        known = ", ".join(f"`{name}`" for name in candidate.formerly)
        code = f"`{candidate.code}`" + (f", formerly {known}" if known else "")
        lines += [f"## {candidate.name}", "", code, "", body, ""]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
