"""The report as JSON: the stable contract for programs."""

from __future__ import annotations

import json
import re
from typing import Any

from vlmdoctor.report import Report


def render(report: Report, *, color: bool, verbose: bool, quiet: bool, width: int) -> str:
    """The whole report; colour, verbosity and width do not matter here."""
    return as_json(report.to_dict(), ensure_ascii=False)


def as_json(values: Any, *, ensure_ascii: bool) -> str:
    """`values` as JSON; what a reader of lines would take for a command is written with an escape."""
    text = json.dumps(values, indent=2, ensure_ascii=ensure_ascii, allow_nan=False)
    # Such marks can only be inside of texts, where JSON has another way of writing them.
    return re.sub(r"##(?=\w{0,20}\[)", "#\\\\u0023", text) + "\n"
