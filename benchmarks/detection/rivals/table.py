"""The tools side by side, for the documentation."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.detection.case import Case
from benchmarks.detection.rivals.rival import LEFT_OUT, NAMES, is_right, rival
from benchmarks.detection.rivals.run import Record
from benchmarks.detection.score import ALARMS, Scored


@dataclass(frozen=True)
class Tally:
    """How a tool fared on some faults: cases, how many found, how many with the right cause."""

    cases: int
    found: int
    right: int

    def __str__(self) -> str:
        return f"{self.found} / {self.right} of {self.cases}" if self.cases else "–"


def beside(scored: Scored, record: Record) -> list[str]:
    """The section of the page: vlmdoctor and each tool on the cases that the tool was run on."""
    tools = [tool for tool in NAMES if any(case in record[tool] for case in _names(scored))]
    if not tools:
        return []
    areas = _areas()
    ours = {v.case.name: (v.found, v.right) for v in scored.faults}
    columns = ["vlmdoctor", *(rival(tool).name for tool in tools)]
    lines = [
        "## Beside other tools",
        "",
        "The same cases, each tool in an environment of its own and used as its README says (below).",
        "*Found / cause of cases*: it failed or warned / a check that did so names the planted fault, by the "
        "rules of vlmdoctor that mean the same, and so by one measure for all. What a tool says word for "
        "word of the healthy model of the family too is not counted.",
        "",
        _row("planted in", *columns),
        _row(*["---"] * (len(columns) + 1)),
    ]
    for area in dict.fromkeys(areas.values()):
        judged = [v.case for v in scored.faults if areas.get(v.case.fault or "") == area]
        lines.append(_row(area, _ours(judged, ours), *(_theirs(judged, record[tool]) for tool in tools)))
    everything = [v.case for v in scored.faults]
    lines.append(
        _row("**all**", _ours(everything, ours), *(_theirs(everything, record[tool]) for tool in tools))
    )
    healthy = [case.name for case, _ in scored.healthy]
    own = [outcome for _, outcome in scored.healthy]
    lines += [
        _row(
            "healthy: failed / only warned",
            _alarms([[f["severity"] for f in o.get("findings", ())] for o in own]),
            *(_alarms(_severities(record[tool], healthy)) for tool in tools),
        ),
        _row(
            "seconds for a case, median",
            _median(o["seconds"] for o in [*own, *(v.outcome for v in scored.faults)] if "seconds" in o),
            *(_median(a["seconds"] for a in record[tool].values() if "seconds" in a) for tool in tools),
        ),
        _row(
            "gave up on (it raised, or took too long)",
            str(len(scored.broken)),
            *(str(sum("error" in answer for answer in record[tool].values())) for tool in tools),
        ),
        "",
        "How each was used:",
        "",
        *(f"- {rival(tool).requirement.replace('==', ' ')}: {rival(tool).used}." for tool in tools),
        "",
        "Not run:",
        "",
        *(f"- {tool}: {why}." for tool, why in LEFT_OUT.items()),
        "",
    ]
    return [*lines, *_theirs_alone(scored, record, tools)]


def names_cause(case: Case, answer: dict[str, Any]) -> bool:
    """Whether an answer of the record names the cause of the case's fault."""
    rules = [rule for alarm in answer.get("alarms", ()) for rule in alarm.partition(" =")[2].split()]
    return is_right(case, rules)


def tally(cases: Iterable[Case], answers: dict[str, Any]) -> Tally:
    """How a tool fared on those of the cases that it was run on."""
    pairs = [(case, answers[case.name]) for case in cases if case.name in answers]
    return Tally(
        len(pairs),
        sum(bool(answer.get("alarms")) for _, answer in pairs),
        sum(names_cause(case, answer) for case, answer in pairs),
    )


def _theirs_alone(scored: Scored, record: Record, tools: list[str]) -> list[str]:
    """The faults whose cause another tool names and vlmdoctor does not."""
    lines = [
        f"- {v.case.name}: {rival(tool).name}"
        for v in scored.faults
        for tool in tools
        if not v.right and names_cause(v.case, record[tool].get(v.case.name, {}))
    ]
    return ["Named by another tool and not by vlmdoctor:", "", *(lines or ["- nothing"]), ""]


def _theirs(cases: list[Case], answers: dict[str, Any]) -> str:
    return str(tally(cases, answers))


def _ours(cases: list[Case], ours: dict[str, tuple[bool, bool]]) -> str:
    return str(Tally(len(cases), sum(ours[c.name][0] for c in cases), sum(ours[c.name][1] for c in cases)))


def _severities(answers: dict[str, Any], names: list[str]) -> list[list[str]]:
    """The severities of each case's alarms, for the cases that the tool judged."""
    judged = [answers[name] for name in names if "alarms" in answers.get(name, {})]
    return [[alarm.split()[0] for alarm in answer["alarms"]] for answer in judged]


def _alarms(severities: list[list[str]]) -> str:
    failed = sum("error" in one for one in severities)
    warned = sum(any(s in ALARMS for s in one) and "error" not in one for one in severities)
    return f"{failed} / {warned} of {len(severities)}"


def _median(seconds: Iterable[float]) -> str:
    values = list(seconds)
    return f"{statistics.median(values):.1f}" if values else "–"


def _areas() -> dict[str, str]:
    """The area of each fault: the file that it is planted in."""
    from benchmarks.detection import faults  # noqa: F401  (it registers them)
    from benchmarks.detection.faults.plant import FAULTS

    return {fault.name: fault.plant.__module__.rpartition(".")[2] for fault in FAULTS}


def _names(scored: Scored) -> list[str]:
    return [*(v.case.name for v in scored.faults), *(case.name for case, _ in scored.healthy)]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
