"""The report as JSON: the stable contract for programs."""

from __future__ import annotations

import json

from vlmdoctor.report import Report


def render(report: Report, *, color: bool, verbose: bool, quiet: bool, width: int) -> str:
    """The whole report; colour, verbosity and width do not matter here."""
    return json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
