"""The engine: evidence gathered once, rules judged one by one, one finding for one fault."""

from __future__ import annotations

import dataclasses
import gc
import json
import sys
import types
import weakref
from collections.abc import Iterator

import pytest

from vlmdoctor.engine import Gatherer, fold, judge
from vlmdoctor.errors import FindingsError, Unavailable, UserError
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.finding import Certainty, Finding, Fix, Inferred, Proof, Severity
from vlmdoctor.rulebook import Rule, all_rules, answerable, find_rule, rule, select_rules


@dataclasses.dataclass(frozen=True)
class Cheap:
    value: int


@dataclasses.dataclass(frozen=True)
class Dear:
    value: int


@pytest.fixture(autouse=True)
def probes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Puts the two kinds of evidence into modules with probes; returns the log of their calls."""
    calls: list[str] = []
    cheap, dear = types.ModuleType("evidence_cheap"), types.ModuleType("evidence_dear")

    def probe_cheap(subject, gather) -> Cheap:
        calls.append("cheap")
        if subject == "nothing":
            raise Unavailable("nothing was given")
        if subject == "broken":
            raise ZeroDivisionError("the probe itself failed")
        return Cheap(1)

    def probe_dear(subject, gather) -> Dear:
        calls.append("dear")
        return Dear(gather(Cheap).value + 1)

    cheap.DEPTH, cheap.probe = "static", probe_cheap
    dear.DEPTH, dear.probe = "backward", probe_dear
    for evidence_class, module in ((Cheap, cheap), (Dear, dear)):
        module.PROBE = module.__name__
        monkeypatch.setattr(evidence_class, "__module__", module.__name__)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def make(
    name: str, code: str, *, explains: tuple[str, ...] = (), severity: Severity = Severity.ERROR
) -> Rule:
    def function(cheap: Cheap) -> Iterator[Finding]:
        yield Finding(f"{name} happened", severity)

    function.__annotations__ = {"cheap": Cheap}
    return Rule(name, code, function, explains)


def needs(name: str, **requirements: object) -> Rule:
    def function(**evidence: object) -> Iterator[Finding]:
        yield Finding(str(sorted(evidence.items())), Severity.INFO)

    made = Rule(name, "LOSS900", function)
    made.__dict__["requirements"] = requirements
    return made


def test_evidence_is_gathered_once(probes: list[str]) -> None:
    gather = Gatherer("a subject")
    assert gather(Dear) == Dear(2) and gather(Dear) == Dear(2) and gather(Cheap) == Cheap(1)
    assert probes == ["dear", "cheap"]
    assert set(gather.gathered) == {Cheap, Dear}


def test_given_evidence_is_taken_as_it_is(probes: list[str]) -> None:
    gather = Gatherer(None, [Cheap(7)])
    assert gather(Cheap) == Cheap(7)
    assert probes == []
    with pytest.raises(Unavailable, match="no evidence_dear evidence was given"):
        gather(Dear)


def test_a_refusal_is_remembered(probes: list[str]) -> None:
    gather = Gatherer("nothing")
    for _ in range(2):
        with pytest.raises(Unavailable, match="nothing was given"):
            gather(Cheap)
    assert probes == ["cheap"]


def test_a_refusal_keeps_nothing_of_what_the_probe_held(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[object]] = []

    class Graph:
        """Of a loss, say."""

    def probe(subject, gather) -> Cheap:
        graph = Graph()
        held.append(weakref.ref(graph))
        try:
            raise ValueError(graph)
        except ValueError as error:
            raise Unavailable("no such thing") from error

    module = types.ModuleType("cheap_evidence")
    module.DEPTH, module.PROBE, module.probe = "static", "cheap_evidence", probe
    monkeypatch.setitem(sys.modules, "cheap_evidence", module)
    monkeypatch.setattr(Cheap, "__module__", "cheap_evidence")
    gather = Gatherer(object())
    for _ in range(2):
        with pytest.raises(Unavailable, match="no such thing"):
            gather(Cheap)
    gc.collect()
    assert [reference() for reference in held] == [None]


def test_too_deep_is_refused_without_probing(probes: list[str]) -> None:
    with pytest.raises(Unavailable, match="--depth backward"):
        Gatherer("a subject", depth="forward")(Dear)
    assert probes == []


def test_only_what_selected_rules_ask_for_is_probed(probes: list[str]) -> None:
    judge([make("one", "LOSS901")], Gatherer("a subject"), command="c", target="t")
    assert probes == ["cheap"]


def test_missing_evidence_skips_with_the_reason() -> None:
    report = judge([make("one", "LOSS901")], Gatherer("nothing"), command="c", target="t")
    assert report.skipped == (("one", "nothing was given"),)
    assert (report.verdict, report.exit_status) == ("incomplete", 2)
    with pytest.raises(FindingsError, match="nothing was given"):
        report.raise_for_findings()


def test_optional_evidence_may_be_missing() -> None:
    optional = needs("optional", cheap=(Cheap, True))
    report = judge([optional], Gatherer("nothing"), command="c", target="t")
    assert report.findings[0].message == "[('cheap', None)]"
    assert report.exit_status == 0


@pytest.mark.parametrize("where", ["rule", "probe"])
def test_a_crash_is_told_and_the_others_go_on(where: str) -> None:
    def function(cheap: Cheap) -> Iterator[Finding]:
        yield Finding("seen before the crash", Severity.ERROR)
        raise ZeroDivisionError("the rule failed")

    function.__annotations__ = {"cheap": Cheap}
    crashing = Rule("crashing", "LOSS902", function)
    subject = "a subject" if where == "rule" else "broken"
    fine = needs("fine")
    report = judge([crashing, fine], Gatherer(subject), command="c", target="t")
    assert [name for name, _ in report.crashed] == ["crashing"]
    assert "ZeroDivisionError" in report.crashed[0][1]
    assert report.ran == ("fine",)
    assert report.exit_status == 2 and report.verdict == "incomplete"


def test_nothing_ran_is_no_pass() -> None:
    report = judge([], Gatherer("a subject"), command="c", target="t")
    assert report.exit_status == 2 and report.verdict == "incomplete"


def test_the_engine_fills_in_name_and_code() -> None:
    report = judge([make("one", "LOSS901")], Gatherer("a subject"), command="c", target="t")
    assert (report.findings[0].rule, report.findings[0].code) == ("one", "LOSS901")
    assert report.exit_status == 1


@pytest.mark.parametrize(
    ("severity", "fail_on", "status"),
    [
        (Severity.ERROR, "error", 1),
        (Severity.WARNING, "error", 0),
        (Severity.WARNING, "warning", 1),
        (Severity.INFO, "warning", 0),
        (Severity.ERROR, "never", 0),
    ],
)
def test_fail_on(severity: Severity, fail_on: str, status: int) -> None:
    rules = [make("one", "LOSS901", severity=severity)]
    report = judge(rules, Gatherer("a subject"), command="c", target="t", fail_on=fail_on)
    assert report.exit_status == status


def finding(rule: Rule, severity: Severity = Severity.ERROR) -> Finding:
    return Finding(f"{rule.name} happened", severity, rule=rule.name, code=rule.code)


def test_symptoms_are_folded_under_the_root_of_their_chain() -> None:
    symptom = make("symptom", "LOSS901")
    middle = make("middle", "GRAD901", explains=("symptom",))
    root = make("root", "PARAM901", explains=("middle",))
    folded = fold([finding(symptom), finding(middle), finding(root)], [symptom, middle, root])
    assert [f.rule for f in folded] == ["root"]
    assert folded[0].symptoms == ("symptom happened", "middle happened")


def test_findings_without_a_common_cause_stay_apart_errors_first() -> None:
    one, two = make("one", "LOSS901"), make("two", "GRAD901")
    folded = fold([finding(one), finding(two, Severity.INFO)], [one, two])
    assert [f.rule for f in folded] == ["one", "two"]
    assert all(not f.symptoms for f in folded)


def test_two_findings_of_one_rule_stay_two() -> None:
    one = make("one", "LOSS901")
    assert len(fold([finding(one), finding(one)], [one])) == 2


def test_report_is_json_even_with_nan() -> None:
    def function(cheap: Cheap) -> Iterator[Finding]:
        yield Finding(
            "odd", Severity.ERROR, measured={"loss": float("nan"), "at": (1, 2)}, fix=Fix("mend it", ("x",))
        )

    function.__annotations__ = {"cheap": Cheap}
    report = judge([Rule("odd", "LOSS903", function)], Gatherer("s"), command="c", target="t")
    told = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert told["findings"][0]["measured"] == {"loss": "nan", "at": [1, 2]}
    assert told["findings"][0]["fix"] == {"text": "mend it", "commands": ["x"], "tried": False}
    assert set(told) >= {
        "schema_version",
        "tool",
        "command",
        "target",
        "verdict",
        "findings",
        "ran",
        "skipped",
    }


def test_requirements_are_read_off_the_signature() -> None:
    @rule("an-example", "LOSS904")
    def an_example(steps: int, parameters: str | None) -> Iterator[Finding]:
        yield from ()

    assert an_example.requirements == {"steps": (int, False), "parameters": (str, True)}


class TestSelection:
    def chosen(self, **selectors: list[str]) -> set[str]:
        return {r.name for r in select_rules(all_rules(), **selectors)}

    def test_everything_by_default(self) -> None:
        assert self.chosen() == {r.name for r in all_rules()}

    def test_by_name_code_and_prefix(self) -> None:
        assert self.chosen(select=["no-gradient"]) == self.chosen(select=["GRAD201"]) == {"no-gradient"}
        assert self.chosen(select=["OPT"]) == {r.name for r in all_rules() if r.area == "OPT"}

    def test_the_more_specific_selector_wins(self) -> None:
        assert self.chosen(select=["OPT101"], ignore=["OPT"]) == {"weights-not-moving"}
        assert "weights-not-moving" not in self.chosen(select=["OPT"], ignore=["OPT101"])
        assert self.chosen(ignore=["ALL"]) == set()

    def test_unknown_selectors_are_refused_with_a_suggestion(self) -> None:
        with pytest.raises(UserError, match="did you mean 'no-gradient'"):
            self.chosen(select=["no-gradiant"])
        with pytest.raises(UserError, match="there is no rule"):
            find_rule("nonsense")


class TestLinksAndCertainty:
    def test_links_come_from_the_page_behind_those_of_the_finding(self) -> None:
        @rule("a-linked", "AAA001")
        def linked(colour: Colour) -> Iterator[Finding]:
            """Says it.

            ## Why it matters
            See [one
            1](https://example.org/1), [two](https://example.org/2).
            """
            own = ("https://example.org/3", "https://example.org/2")
            yield Finding("m", Severity.ERROR, links=own, cause="c")

        (finding,) = judge([linked], Gatherer(None, [Colour()]), command="t", target="t").findings
        assert finding.links == tuple(f"https://example.org/{number}" for number in (3, 2, 1))
        assert finding.to_dict()["certainty"] == "measured"

    def test_a_cause_says_itself_that_it_is_inferred(self) -> None:
        finding = Finding("m", Severity.ERROR, cause=Inferred("perhaps"))
        assert finding.certainty is Certainty.INFERRED and finding.to_dict()["cause"] == "perhaps"
        longer = dataclasses.replace(finding, cause=f"{finding.cause}. Seen: more")
        assert longer.certainty is Certainty.INFERRED
        proven = dataclasses.replace(longer, proof=Proof("a repair", "1", "0"))
        assert proven.certainty is Certainty.PROVEN
        tried = dataclasses.replace(longer, proof=Proof("a repair", "1", "1", works=False))
        assert tried.certainty is Certainty.INFERRED

    def test_rules_are_answerable_by_what_they_need(self) -> None:
        @rule("a-needs", "AAA001")
        def needs(colour: Colour) -> Iterator[Finding]:
            yield from ()

        @rule("a-likes", "AAA002")
        def likes(steps: Steps, colour: Colour | None) -> Iterator[Finding]:
            yield from ()

        assert answerable({Colour}, [needs, likes]) == [needs]
        assert answerable({Steps}, [needs, likes]) == [likes]
        assert answerable({Steps, Colour}, [needs, likes]) == [needs, likes]
        assert answerable((), [needs, likes]) == []


@dataclasses.dataclass(frozen=True)
class Colour:
    """A kind of evidence that nothing probes."""
