"""One verdict: what was not seen, or was cut short, is never green."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import recorded_runs as runs
import torch
from tiny_vlm import TinyVLM, adamw, batch

import vlmdoctor
from vlmdoctor.engine import fold
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Evaluation, Step, Steps, Withdrawn
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.live import display, session
from vlmdoctor.report import Report
from vlmdoctor.reporters.card import summary_line
from vlmdoctor.rulebook import all_rules
from vlmdoctor.runs.conclusion import judge_run, rules_for_runs, undecided
from vlmdoctor.runs.reader import read_files
from vlmdoctor.runs.verdict import verdict
from vlmdoctor.watching.judging import Judging

BLIND = {"accuracy": 0.12, "accuracy_shuffled": 0.12, "loss": 2.0, "loss_shuffled": 2.0, "samples": 200}


def steps_of(count: int, *, loss: float | None = 3.0, **more: Any) -> Steps:
    return Steps(steps=tuple(Step(step=i, loss=loss) for i in range(count)), **more)


class InTuple(TinyVLM):
    """A model that returns (logits, loss)."""

    def forward(self, **given: Any) -> Any:
        output = super().forward(**given)
        return output.logits, output.loss


class Logits(TinyVLM):
    """A model whose loss is computed outside of it."""

    def forward(self, labels: torch.Tensor, **given: Any) -> Any:
        return super().forward(labels=labels, **given).logits


def outside(logits: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    rows, labels = logits[:, :-1].flatten(0, 1), given["labels"][:, 1:].flatten()
    return torch.nn.functional.cross_entropy(rows, labels)


def trained(model: Any, steps: int, *, out: Path | None = None, **options: Any) -> Any:
    optimizer = adamw(model)
    with vlmdoctor.watch(model, optimizer, out=out, **options) as watcher:
        for number in range(steps):
            given = batch(number)
            output = model(**given)
            if isinstance(output, tuple):
                loss = output[1]
            else:
                loss = outside(output, given)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return watcher


def test_a_loss_in_a_tuple_is_seen_and_every_step_is_counted(tmp_path: Path) -> None:
    watcher = trained(InTuple(), 18, out=tmp_path / "run")
    report = watcher.report()
    assert (report.verdict, report.incomplete) == ("pass", None)
    _, steps = watcher.evidence()
    assert len(steps.losses) == 18
    read = read_files(tmp_path / "run")
    assert read.evidence()[1].made == steps.made == 18
    from vlmdoctor.runs.columns import recording_of

    assert recording_of(read).last_step == 17


def test_a_loss_that_was_not_seen_is_no_verdict(tmp_path: Path) -> None:
    watcher = trained(Logits(), 12, out=tmp_path / "run")
    report = watcher.report()
    assert (report.verdict, report.exit_status) == ("incomplete", 2)
    assert "loss not seen: return it under `loss` or call watcher.log(loss=...)" in str(report)


def test_a_loss_that_was_logged_is_seen() -> None:
    model = Logits()
    optimizer = adamw(model)
    with vlmdoctor.watch(model, optimizer) as watcher:
        for number in range(6):
            given = batch(number)
            output = model(**given)
            loss = torch.nn.functional.cross_entropy(
                output[:, :-1].flatten(0, 1), given["labels"][:, 1:].flatten()
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            watcher.log(loss=loss.item())
    assert watcher.report().verdict == "pass"


def test_a_run_without_a_step_is_no_verdict(tmp_path: Path) -> None:
    report = trained(TinyVLM(), 0, out=tmp_path / "run").report()
    assert (report.verdict, report.exit_status) == ("incomplete", 2)
    assert "no optimizer step was seen" in repr(report)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vlmdoctor",
            "report",
            tmp_path / "run",
            "--no-draw",
            "--output-format",
            "json",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert json.loads(done.stdout)["incomplete"] == "no optimizer step was seen"


@pytest.mark.parametrize(
    ("made", "planned", "finished", "reason"),
    [
        (150, 500, False, "too early to tell whether it uses its images (150 of 500 steps)"),
        (150, 150, True, "too early to tell whether it uses its images (150 of 500 steps)"),
        (150, 2000, False, "too early to tell whether it uses its images (150 of 2,000 steps)"),
        (2000, 2000, True, "it was not seen to use its images"),
        (20, 20, True, None),
    ],
)
def test_a_run_that_does_not_use_its_images_is_not_green(
    made: int, planned: int, finished: bool, reason: str | None
) -> None:
    seen = (Evaluation(step=made - 1, **BLIND),)
    steps = steps_of(made, evaluations=seen, planned_steps=planned, finished=finished)
    assert undecided(steps) == reason
    report = judge_run(Parameters(parameters=()), steps, rules_for_runs(), command="train", target="t")
    assert report.verdict == ("pass" if reason is None else "incomplete")
    headline = verdict(BLIND, losses=[3.0] * made, steps=made, total=planned, finished=finished).headline
    assert ("Too early to tell" in headline) is (reason is not None and "too early" in reason)


def test_headline_and_verdict_use_the_same_measure() -> None:
    better = {**BLIND, "accuracy": 0.5}
    assert undecided(steps_of(2000, evaluations=(Evaluation(step=1999, **better),))) is None
    assert verdict(better, losses=[3.0], steps=2000).uses_images is True
    by_loss = {**BLIND, "loss_shuffled": 2.6}
    assert undecided(steps_of(2000, evaluations=(Evaluation(step=1999, **by_loss),))) is None
    assert verdict(by_loss, losses=[3.0], steps=2000).uses_images is True


def test_a_budget_that_ran_out_is_no_verdict() -> None:
    report = vlmdoctor.check(TinyVLM(), batch(0), budget=0)
    assert (report.verdict, report.exit_status) == ("incomplete", 2)
    assert report.incomplete is not None
    assert report.incomplete.startswith("the budget of 0 s ran out before ")
    whole = vlmdoctor.check(TinyVLM(), batch(0), budget=600)
    assert (whole.verdict, whole.incomplete) == ("pass", None)


def test_a_finding_is_a_failure_also_where_the_budget_ran_out() -> None:
    found = (Finding("m", Severity.ERROR),)
    report = Report("check", "t", findings=found, ran=("a",), incomplete="the budget of 5 s ran out")
    assert (report.verdict, report.exit_status) == ("fail", 1)


class TestWithdrawn:
    FOUND = Finding(
        "the loss does not fall", Severity.WARNING, rule="loss-not-falling", code="LOSS101", step=40
    )

    def test_a_finding_that_no_longer_holds_is_said_to_be_over_and_may_come_again(self) -> None:
        judging = Judging(on=True)
        with_it = Report("watch", "t", findings=(self.FOUND,))
        assert list(judging.new(with_it)) == [self.FOUND]
        assert list(judging.gone(with_it)) == []
        without = Report("watch", "t")
        assert list(judging.gone(without)) == [self.FOUND]
        assert list(judging.gone(without)) == []
        assert list(judging.new(with_it)) == [self.FOUND]

    def test_one_that_another_explains_now_is_not_over(self) -> None:
        judging = Judging(on=True)
        list(judging.new(Report("watch", "t", findings=(self.FOUND,))))
        cause = Finding("no gradient", Severity.ERROR, rule="no-gradient", symptoms=(self.FOUND.message,))
        assert list(judging.gone(Report("watch", "t", findings=(cause,)))) == []

    def test_it_is_recorded_and_in_the_report(self, tmp_path: Path) -> None:
        model, said = TinyVLM(), []
        with vlmdoctor.watch(
            model, adamw(model), out=tmp_path / "run", on_withdrawn=lambda finding, step: said.append(step)
        ) as watcher:
            watcher._judging.findings[("loss-not-falling", "warning")] = self.FOUND
            output = model(**batch(0))
            output.loss.backward()
            watcher._judge()
        line = "the loss does not fall  [loss-not-falling LOSS101]"
        assert line in str(watcher.report())
        assert len(said) == 1
        read = read_files(tmp_path / "run").evidence()[1].withdrawn
        assert [one.message for one in read] == ["the loss does not fall"]

    def test_every_form_shows_it(self) -> None:
        steps = steps_of(
            60,
            withdrawn=(
                Withdrawn(
                    rule="loss-not-falling",
                    code="LOSS101",
                    severity="warning",
                    message="the loss does not fall",
                    since=40,
                    step=52,
                ),
            ),
        )
        report = judge_run(Parameters(parameters=()), steps, rules_for_runs(), command="watch", target="t")
        from vlmdoctor import reporters

        for name in ("full", "concise", "markdown", "github", "html"):
            text = reporters.reporter(name).render(report, color=False, verbose=False, quiet=False, width=100)
            assert "withdrawn at step 52: the loss does not fall" in text, name

    def test_the_log_says_it(self) -> None:
        from test_live import new_state

        stream = io.StringIO()
        display.PlainLines(new_state(), stream).withdrawn(self.FOUND, 52)
        assert (
            stream.getvalue() == "withdrawn at step 52: the loss does not fall  [loss-not-falling LOSS101]\n"
        )


def test_the_page_has_the_verdict_of_the_report(tmp_path: Path) -> None:
    folder = runs.write_run(tmp_path, steps=20, eval_every=0)
    from vlmdoctor.runs.outputs import publish

    publish(folder, Report("train", "t", ran=("a",), incomplete="too early to tell"), lambda _: None)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "! incomplete" in page and "no issues found" not in page


BLANK = Finding("images are blank", Severity.WARNING, rule="pixels-not-usable", code="IMG303")
IGNORED = Finding("images are ignored", Severity.ERROR, rule="image-ignored", code="IMG101")
GATE = Finding("accuracy 7%, required 90%", Severity.ERROR, rule="accuracy-below-gate", code="LOSS110")


class TestCauseLeads:
    @pytest.mark.parametrize("symptoms", [(IGNORED,), (GATE,), (IGNORED, GATE)])
    def test_what_was_suspected_before_a_run_leads_what_the_run_showed(
        self, symptoms: tuple[Finding, ...]
    ) -> None:
        before = Report("check", "t", findings=(BLANK,), ran=("pixels-not-usable",))
        report = session._joined(Report("train", "t", findings=symptoms, ran=("image-ignored",)), before)
        assert [(f.rule, f.severity) for f in report.findings] == [("pixels-not-usable", Severity.ERROR)]
        assert set(report.findings[0].symptoms) == {f.message for f in symptoms}
        assert (report.verdict, report.exit_status) == ("fail", 1)

    def test_the_symptoms_of_a_symptom_are_kept(self) -> None:
        ignored = dataclasses.replace(IGNORED, symptoms=(GATE.message,))
        before = Report("check", "t", findings=(BLANK,), ran=("pixels-not-usable",))
        report = session._joined(Report("train", "t", findings=(ignored,), ran=("image-ignored",)), before)
        assert report.findings[0].symptoms == (IGNORED.message, GATE.message)

    def test_a_suspicion_that_nothing_bears_out_stays_one(self) -> None:
        before = Report("check", "t", findings=(BLANK,), ran=("pixels-not-usable",))
        report = session._joined(Report("train", "t", ran=("image-ignored",)), before)
        assert report.findings == (BLANK,)

    @pytest.mark.parametrize(
        "cause", ["blank-images", "pixels-not-usable", "image-without-effect", "pixel-mask-hides-images"]
    )
    @pytest.mark.parametrize("symptom", ["image-ignored", "image-adds-nothing", "accuracy-below-gate"])
    def test_what_keeps_images_out_explains_that_they_are_not_used(self, cause: str, symptom: str) -> None:
        found = [dataclasses.replace(IGNORED, rule=name, message=name) for name in (symptom, cause)]
        assert [(f.rule, f.symptoms) for f in fold(found, all_rules())] == [(cause, (symptom,))]


def test_the_closing_line_of_a_failure_says_first_that_it_fails() -> None:
    reason = "it was not seen to use its images"
    report = Report("train", "t", findings=(IGNORED,), ran=("image-ignored",), incomplete=reason)
    assert report.exit_status == 1
    assert summary_line(report).startswith(f"✗ 1 error, 0 warnings · incomplete: {reason} · 1 check")


@pytest.mark.parametrize(("fail_on", "verdict_", "status"), [("error", "fail", 1), ("never", "pass", 0)])
def test_images_that_are_ignored_are_a_finding_and_no_missing_judgement(
    fail_on: str, verdict_: str, status: int
) -> None:
    fallen = tuple(Step(step=i, loss=3.0 if i < 200 else 1.0) for i in range(2000))
    seen = (Evaluation(step=1999, **BLIND),)
    steps = Steps(steps=fallen, evaluations=seen, planned_steps=2000, finished=True)
    report = judge_run(
        Parameters(parameters=()), steps, rules_for_runs(), command="train", target="t", fail_on=fail_on
    )
    assert [finding.rule for finding in report.findings] == ["image-ignored"]
    assert (report.verdict, report.exit_status, report.incomplete) == (verdict_, status, None)
    # Nothing fails where nothing is asked to, but it is not green.
    assert summary_line(report)[0] == ("✗" if status else "!")
