"""One line for each finding, as compilers print them."""

from __future__ import annotations

from vlmdoctor.plain_text import without_commands
from vlmdoctor.report import Report
from vlmdoctor.reporters.card import summary_line, withdrawn_lines


def render(report: Report, *, color: bool, verbose: bool, quiet: bool, width: int) -> str:
    """`file:line: severity: message [name CODE]`, or the place in the model instead of the file."""
    lines = []
    for finding in report.findings:
        if finding.file is not None:
            place = f"{finding.file}:{finding.line}: " if finding.line else f"{finding.file}: "
        else:
            place = f"{', '.join(finding.at)}: " if finding.at else ""
        lines.append(f"{place}{finding.severity}: {finding.message} [{finding.rule} {finding.code}]")
    lines += withdrawn_lines(report)
    if not quiet:
        lines.append(summary_line(report))
    return without_commands("".join(line + "\n" for line in lines))
