"""The result for people: a summary for the terminal and the table for the documentation."""

from __future__ import annotations

from collections import defaultdict

from benchmarks.detection.families import NOT_BUILT
from benchmarks.detection.rivals.run import read_record
from benchmarks.detection.rivals.table import beside
from benchmarks.detection.score import ALARMS, Scored, Verdict


def summary(scored: Scored) -> str:
    """A few lines: how many were found, false alarms by rule, the slowest, and what could not be judged."""
    lines = []
    if scored.healthy:
        clean = sum(
            not any(f["severity"] in ALARMS for f in o.get("findings", ())) for _, o in scored.healthy
        )
        lines.append(f"healthy: {clean} of {len(scored.healthy)} cases without an error or a warning")
        lines += [
            f"  {count:3} x {severity} {rule}"
            for (rule, severity), count in scored.false_alarms.most_common()
        ]
    if scored.faults:
        lines.append("faults: " + _counts(scored.faults))
        lines += [f"  missed: {v.case.name}" for v in scored.faults if not v.found]
        lines += [
            f"  another cause named: {v.case.name} ({', '.join(v.beside)})"
            for v in scored.faults
            if v.found and not v.right
        ]
    timed = sorted(((o["seconds"], c.name) for c, o in _all(scored) if "seconds" in o), reverse=True)
    if timed:
        middle = timed[len(timed) // 2][0]
        slowest = ", ".join(f"{name} {seconds:.1f}" for seconds, name in timed[:5])
        lines.append(f"seconds for one check: {middle:.2f} in the middle; slowest {slowest}")
    lines += [f"not judged: {name}: {why}" for name, why in scored.broken]
    return "\n".join(lines)


def markdown(scored: Scored) -> str:
    """The page of the documentation."""
    by_fault: dict[str, list[Verdict]] = defaultdict(list)
    for judged in scored.faults:
        by_fault[judged.case.fault or ""].append(judged)
    lines = [
        "# What is found, and what is not",
        "",
        "Written by `python -m benchmarks.detection --markdown docs/detection.md`; do not edit.",
        "",
        "Each fault is planted by its mechanism into small models of the families named.",
        "*Found*: there is an error or a warning. *Cause*: a rule that fired names the planted fault.",
        "*Place*: that finding also names where. A dash: the fault has no single place.",
        "",
        f"Faults: {_counts(scored.faults)}.",
        "",
        "| fault | planted | families | found | cause | place | rules |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, judged in sorted(by_fault.items()):
        families = ", ".join(v.case.family for v in judged)
        count = len(judged)
        found, right = sum(v.found for v in judged), sum(v.right for v in judged)
        placed = [v.located for v in judged if v.located is not None]
        place = f"{sum(placed)}/{len(placed)}" if placed else "–"
        rules = sorted(
            {f["rule"] for v in judged for f in v.outcome.get("findings", ()) if f["severity"] in ALARMS}
        )
        lines.append(
            f"| {name} | {judged[0].case.planted} | {families} | {found}/{count} | {right}/{count} | {place} "
            f"| {', '.join(rules) or 'none'} |"
        )
    missed = [v.case.name for v in scored.faults if not v.right]
    lines += ["", "## Missed, or named otherwise", "", *(f"- {name}" for name in missed or ["nothing"])]
    lines += [
        "",
        "## The healthy",
        "",
        *_healthy(scored),
        "",
        *_not_built(),
        "",
        *beside(scored, read_record()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _healthy(scored: Scored) -> list[str]:
    kinds: dict[str, list[bool]] = defaultdict(list)
    for case, outcome in scored.healthy:
        kinds[case.name.partition("/")[0]].append(
            not any(f["severity"] in ALARMS for f in outcome.get("findings", ()))
        )
    lines = ["| kind | cases | without an error or a warning |", "|---|---|---|"]
    lines += [f"| {kind} | {len(clean)} | {sum(clean)} |" for kind, clean in kinds.items()]
    alarms = {key: count for key, count in scored.false_alarms.items() if key[1] in ALARMS}
    lines += [
        "",
        "False alarms by rule: "
        + (", ".join(f"{rule} ({severity}) {n}" for (rule, severity), n in sorted(alarms.items())) or "none")
        + ".",
    ]
    return lines


def _not_built() -> list[str]:
    lines = ["Families of image-text-to-text models without a case:", ""]
    return [*lines, *(f"- {family}: {why}" for family, why in sorted(NOT_BUILT.items()))]


def _counts(faults: tuple[Verdict, ...]) -> str:
    placed = [v.located for v in faults if v.located is not None and v.right]
    return (
        f"{len(faults)} cases, {sum(v.found for v in faults)} found, {sum(v.right for v in faults)} with the "
        f"right cause, {sum(placed)} of {len(placed)} of those located"
    )


def _all(scored: Scored) -> list:
    return [*scored.healthy, *((v.case, v.outcome) for v in scored.faults)]
