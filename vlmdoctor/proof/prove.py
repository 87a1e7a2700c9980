"""Trying repairs on a copy and measuring again: until then a cause is a guess.

Repairs are found by being files: that of the rule `no-gradient` is `vlmdoctor/repairs/no_gradient.py`.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, cast

from vlmdoctor.engine import DEPTHS, Gatherer, judge
from vlmdoctor.errors import NotProven, Unavailable, WouldMove
from vlmdoctor.finding import Certainty, Finding, Proof
from vlmdoctor.plain_text import raised
from vlmdoctor.report import Report
from vlmdoctor.rulebook import Rule
from vlmdoctor.sandbox.reading import source_line
from vlmdoctor.sandbox.signals import raise_if_interrupted
from vlmdoctor.subject import Subject


@dataclasses.dataclass(frozen=True)
class Measurement:
    """What a repair's measurement gave: as text, and whether it is healthy."""

    text: str
    healthy: bool


@dataclasses.dataclass(frozen=True)
class Attempt:
    """What a repair did to the copy.

    Attributes:
        text: In words that fit behind "with": `requires_grad switched on for 55 tensors`.
        learned: Fields of the finding that are known better now, such as `cause`, `file` and `line`.
    """

    text: str
    learned: dict[str, Any] = dataclasses.field(default_factory=dict)


class Repair(Protocol):
    """What a file under `vlmdoctor/repairs/` holds."""

    DEPTH: str
    COPIES: bool  # whether it needs a copy: False where only the way of running the model is changed
    OF_PARAMETERS: bool  # whether it changes only what a finding lists as its parameters

    def apply(self, bench: Any, finding: Finding, gather: Gatherer) -> Attempt:
        """Repairs the copy; raises `Unavailable` where it can't."""

    def measure(self, bench: Any, finding: Finding) -> Measurement:
        """Measures what the finding is about; runs on a copy before and on another after the repair.

        May be left out: then the rule itself is run once more on the repaired copy.
        """


def repair_of(rule: str) -> Repair | None:
    """The repair for a rule's findings; None where there is none."""
    name = f"vlmdoctor.repairs.{rule.replace('-', '_')}"
    if not rule or importlib.util.find_spec(name) is None:
        return None
    return cast(Repair, importlib.import_module(name))


def prove(
    report: Report, subject: Subject, gather: Gatherer, rules: Iterable[Rule], in_time: Callable[[], bool]
) -> Report:
    """The report with each finding's repair tried, and what a repair makes go away folded under it.

    Where a rule has a repair and it was not tried or did not help, the cause says that it is inferred.
    Whatever happens in here never harms the report.

    Args:
        report: What the rules found.
        subject: What was examined; nothing of it is changed.
        gather: The evidence about it.
        rules: The rules that were run.
        in_time: Whether there is time left for another attempt.
    """
    proven, reasons = [], {}
    gone: dict[int, set[str]] = {}
    for number, finding in enumerate(report.findings):
        repair = None if finding.proof is not None else repair_of(finding.rule)
        if repair is None or (repair.OF_PARAMETERS and not finding.parameters):
            proven.append(finding)
            continue
        try:
            if DEPTHS.index(repair.DEPTH) > DEPTHS.index(gather.depth):
                raise Unavailable(f"trying the repair needs --depth {repair.DEPTH}")
            if not in_time():
                raise Unavailable("no time was left for trying the repair")
            gather.progress(f"trying the repair of {finding.rule}")
            others = [f for f in report.findings if f is not finding]
            finding, gone[number] = _tried(subject, finding, repair, gather, rules, others)
        except NotProven as seen:
            reasons[finding.rule] = str(seen)
            finding = dataclasses.replace(
                finding, cause=". Seen: ".join(filter(None, (finding.cause, str(seen))))
            )
        except (Unavailable, WouldMove) as reason:
            reasons[finding.rule] = str(reason)
        except Exception as error:
            reasons[finding.rule] = f"the attempt failed ({raised(error, 200)})"
        raise_if_interrupted()
        proven.append(_with_certainty(finding))
    facts = {**report.facts, **({"not_proven": reasons} if reasons else {})}
    return dataclasses.replace(report, findings=tuple(_ranked(proven, gone)), facts=facts)


def _tried(
    subject: Subject,
    finding: Finding,
    repair: Repair,
    gather: Gatherer,
    rules: Iterable[Rule],
    others: list[Finding],
) -> tuple[Finding, set[str]]:
    """(the finding with its proof, the rules among the others' that no longer fire on the repaired copy)."""
    import torch

    from vlmdoctor.proof.workbench import workbench_for
    from vlmdoctor.sandbox.restore import restoring

    with restoring(subject):

        def between() -> AbstractContextManager[object, bool | None]:
            # The model itself must be unchanged before each attempt: it may keep tensors of the last.
            return nullcontext() if repair.COPIES else restoring(subject)

        def repaired() -> tuple[Any, Attempt]:
            bench = workbench_for(subject, copied=repair.COPIES)
            with between():
                return bench, repair.apply(bench, finding, gather)

        def measured(bench: Any) -> Measurement:
            with between():
                if hasattr(repair, "measure"):
                    return repair.measure(bench, finding)
                with bench.repaired_way():
                    return _judged_again(bench.subject(subject), finding, rules, gather.depth)

        drawn = torch.get_rng_state()
        before = measured(workbench_for(subject, copied=repair.COPIES))
        if before.healthy:
            raise Unavailable("the copy does not show the fault")
        torch.set_rng_state(drawn)  # the same dropout in both
        bench, tried = repaired()
        after = measured(bench)
        proof = Proof(tried.text, before.text, after.text, works=after.healthy)
        learned = dict(tried.learned) if after.healthy else {}
        if "file" in learned:
            learned["source"] = source_line(learned["file"], learned.get("line"))
        gone: set[str] = set()
        if after.healthy and others:
            del bench
            bench, _ = repaired()
            rivals = {f.rule for f in others if f.severity.rank <= finding.severity.rank}
            with bench.repaired_way():
                gone = _no_longer(
                    bench.subject(subject), [r for r in rules if r.name in rivals], gather.depth
                )
    return dataclasses.replace(finding, proof=proof, **learned), gone


def _judged_again(subject: Subject, finding: Finding, rules: Iterable[Rule], depth: str) -> Measurement:
    judged = judge(
        [r for r in rules if r.name == finding.rule], Gatherer(subject, depth=depth), command="", target=""
    )
    if not judged.ran:
        raise Unavailable("the rule can't be run on the repaired copy")
    said = "; ".join(f.message for f in judged.findings)
    return Measurement(said or f"{finding.rule} finds nothing any more", not judged.findings)


def _no_longer(subject: Subject, rules: list[Rule], depth: str) -> set[str]:
    judged = judge(rules, Gatherer(subject, depth=depth), command="", target="")
    return set(judged.ran) - {finding.rule for finding in judged.findings}


def _with_certainty(finding: Finding) -> Finding:
    """The finding after its repair was tried, or could not be."""
    if finding.cause is None or finding.certainty is not Certainty.MEASURED:
        return finding
    return dataclasses.replace(finding, certainty=Certainty.INFERRED)


def _ranked(findings: list[Finding], gone: dict[int, set[str]]) -> list[Finding]:
    """Proven causes first among equals; what went away with a repair is folded under that finding."""
    above: dict[int, int] = {}
    for number, rules in gone.items():
        for other, symptom in enumerate(findings):
            mutual = number in above or (findings[number].rule in gone.get(other, ()) and other < number)
            if symptom.rule in rules and other != number and other not in above and not mutual:
                above[other] = number
    kept = []
    for number, finding in enumerate(findings):
        if number in above:
            continue
        under = [findings[other] for other, cause in above.items() if cause == number]
        symptoms = [text for f in under for text in (f.message, *f.symptoms)]
        kept.append(dataclasses.replace(finding, symptoms=(*finding.symptoms, *symptoms)))
    return sorted(kept, key=lambda f: (-f.severity.rank, _doubt(f)))


def _doubt(finding: Finding) -> int:
    """0 where the repair worked, 1 where none was tried, 2 where it was tried and did not help."""
    if finding.proof is None:
        return 1
    return 0 if finding.proof.works else 2
