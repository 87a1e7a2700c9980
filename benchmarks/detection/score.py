"""What an outcome is worth: a fault found, located and named, or a false alarm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from benchmarks.detection.case import Case
from vlmdoctor.rulebook import renamed

ALARMS = ("error", "warning")


@dataclass(frozen=True)
class Verdict:
    """How one planted fault fared.

    Attributes:
        case: The case.
        outcome: What the doctor said.
        found: Whether there was an error or a warning at all.
        right: Whether one of the accepted rules said so.
        located: Whether that finding names the place; None where the fault has none.
        beside: Rules that fired besides.
    """

    case: Case
    outcome: dict[str, Any]
    found: bool
    right: bool
    located: bool | None
    beside: tuple[str, ...]


@dataclass(frozen=True)
class Scored:
    """Both corpora after a run."""

    faults: tuple[Verdict, ...]
    healthy: tuple[tuple[Case, dict[str, Any]], ...]

    @property
    def false_alarms(self) -> Counter[tuple[str, str]]:
        """(rule, severity) -> healthy cases on which it fired."""
        return Counter(
            (finding["rule"], finding["severity"])
            for _, outcome in self.healthy
            for finding in outcome.get("findings", ())
        )

    @property
    def healthy_errors(self) -> int:
        """Healthy cases with an error."""
        return sum(any(f["severity"] == "error" for f in o.get("findings", ())) for _, o in self.healthy)

    @property
    def broken(self) -> list[tuple[str, str]]:
        """(case, why) where nothing could be judged, or a rule crashed."""
        pairs = [*((v.case, v.outcome) for v in self.faults), *self.healthy]
        failed = [(case.name, outcome["error"]) for case, outcome in pairs if "error" in outcome]
        return failed + [
            (case.name, f"{crash['rule']} crashed: {crash['error']}")
            for case, outcome in pairs
            for crash in outcome.get("crashed", ())
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "healthy": [outcome for _, outcome in self.healthy],
            "faults": [
                {
                    **v.outcome,
                    "planted": v.case.planted,
                    "found": v.found,
                    "right": v.right,
                    "located": v.located,
                    "beside": list(v.beside),
                }
                for v in self.faults
            ],
        }


def score(cases: Iterable[Case], outcomes: Iterable[dict[str, Any]]) -> Scored:
    """Judges the outcomes, each by its case."""
    pairs = list(zip(cases, outcomes, strict=True))
    return Scored(
        faults=tuple(verdict(case, outcome) for case, outcome in pairs if case.fault),
        healthy=tuple((case, outcome) for case, outcome in pairs if not case.fault),
    )


def verdict(case: Case, outcome: dict[str, Any]) -> Verdict:
    """How one fault fared."""
    alarms = [finding for finding in outcome.get("findings", ()) if finding["severity"] in ALARMS]
    right = [finding for finding in alarms if accepts(case, finding)]
    text = " ".join(_text(finding) for finding in right)
    return Verdict(
        case,
        outcome,
        found=bool(alarms),
        right=bool(right),
        located=any(place in text for place in case.at) if case.at else None,
        beside=tuple(sorted({finding["rule"] for finding in alarms if finding not in right})),
    )


def accepts(case: Case, finding: dict[str, Any]) -> bool:
    """Whether a finding names the cause of a fault."""
    names = (finding["rule"], finding["code"])
    today = renamed(case.rules)
    return any(
        today.get(name, name) in names or (name.endswith("*") and finding["code"].startswith(name[:-1]))
        for name in case.rules
    )


def one_line(case: Case, outcome: dict[str, Any], *, verbose: bool = False) -> str:
    """What to print of a case while others run; empty where all is as it should be."""
    if "error" in outcome:
        return f"{case.name}: {outcome['error']}"
    findings = [
        f"{f['severity']} {f['rule']}: {f['message']} at {', '.join(f['at'][:3])}"
        for f in outcome["findings"]
    ]
    findings += [f"crashed {crash['rule']}: {crash['error']}" for crash in outcome["crashed"]]
    if case.fault:
        judged = verdict(case, outcome)
        if judged.right and judged.located is not False and not judged.beside and not verbose:
            return ""
        mark = "right" if judged.right else "WRONG" if judged.found else "MISSED"
        place = "" if judged.located is not False or not judged.right else ", not located"
        return "\n      ".join([f"{mark}{place} {case.name} ({outcome['seconds']} s)", *findings])
    if not findings and not verbose:
        return ""
    return "\n      ".join([f"{case.name} ({outcome['seconds']} s)", *findings])


def _text(finding: dict[str, Any]) -> str:
    parts = [finding["message"], finding.get("cause") or "", finding.get("file") or "", *finding["at"]]
    return " ".join(map(str, (*parts, *finding.get("symptoms", ()))))
