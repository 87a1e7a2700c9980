"""The end of a run: the verdict in words, report.html, summary.json, and `vlmdoctor report`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from html.parser import HTMLParser

import PIL.Image
import pytest
import recorded_runs as runs

from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.report import Report
from vlmdoctor.runs import outputs
from vlmdoctor.runs.numbers import percent
from vlmdoctor.runs.outputs import grads_headline, publish
from vlmdoctor.runs.verdict import verdict

EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """Checks that every tag is closed in order, and keeps text and attributes."""

    VOID = frozenset({"meta", "img", "source", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.attributes, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def report_of(*findings):
    return Report(
        command="train", target="minivlm:tiny", findings=findings, ran=("no-gradient", "non-finite")
    )


EXPLOSION = Finding(
    message=f"the gradient norm rose 140-fold {EVIL}",
    severity=Severity.ERROR,
    at=(f"model.{EVIL}",),
    step=121,
    cause="the learning rate is too high",
    fix=Fix("halve it", (f"vlmdoctor train --lr {EVIL}",)),
    rule="exploding-gradient",
    code="GRAD203",
)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A run with everything in it, and nasty texts wherever a text can come from outside."""
    folder = runs.write_run(
        tmp_path_factory.mktemp("runs") / "a & b", steps=300, eval_every=100, frozen=("vision",)
    )
    info = json.loads((folder / "run.json").read_text())
    info |= {"target": EVIL, "command": EVIL, "required_accuracy": 0.9}
    info["config"] |= {"data": EVIL, "set": [EVIL]}
    (folder / "run.json").write_text(json.dumps(info))
    summary = json.loads((folder / "summary.json").read_text())
    summary |= {f"accuracy/{EVIL}": 0.5, "environment": {"torch": EVIL}, "device": EVIL}
    (folder / "summary.json").write_text(json.dumps(summary))
    asked = [
        {"question": f"Which digit? {EVIL}", "answer": "7", "prediction": "7", "image": "examples/0.png"},
        {"question": "Read both", "answer": "7 3", "prediction": EVIL, "image": "../../run.jsonl"},
    ]
    (folder / "examples").mkdir()
    (folder / "examples" / "examples.json").write_text(json.dumps(asked))
    PIL.Image.new("RGB", (8, 8)).save(folder / "examples" / "0.png")
    complaints = []
    learned = publish(folder, report_of(EXPLOSION), complaints.append)
    assert complaints == []
    return folder, learned


def test_the_page_is_whole_escaped_and_needs_nothing_else(published):
    folder, _ = published
    page = Page((folder / "report.html").read_text())
    assert "script" not in page.tags
    sources = [value for name, value in page.attributes if name in ("src", "srcset", "href")]
    kinds = [value.partition(",")[0] for value in sources]
    assert kinds.count("data:image/svg+xml;base64") == 4, "two plots, each for light and for dark pages"
    assert kinds.count("data:image/png;base64") == 1, (
        "the example's picture, and no file from outside the run"
    )
    assert len(kinds) == 5
    assert not any("http" in (value or "") for name, value in page.attributes if name != "srcset")


def test_the_page_says_what_matters(published):
    folder, learned = published
    text = " ".join(Page((folder / "report.html").read_text()).text)
    for wanted in (
        learned.headline,
        "findings to act on",
        EXPLOSION.message,
        "the learning rate is too high",
        f"vlmdoctor train --lr {EVIL}",
        "accuracy (shuffled images)",
        "read both",
        "✓ right",
        "✗ wrong",
        "frozen",
        "25,600",
        "each question with another sample's image",
        "required 90%",
        "torch",
    ):
        assert wanted in text, wanted
    assert "<image>" not in text


def test_the_summary_gets_findings_and_verdict_and_keeps_the_rest(published):
    folder, learned = published
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["verdict"] == "fail"
    assert summary["learned"] == learned.headline
    assert [finding["rule"] for finding in summary["findings"]] == ["exploding-gradient"]
    assert summary["required_accuracy"] == 0.9
    assert 0.9 < summary["accuracy"] < 1
    assert (folder / "loss.png").exists() and (folder / "grads.png").exists()
    assert not list(folder.glob(".*"))


def test_an_unwatched_run_says_why_there_is_no_picture(tmp_path):
    folder = runs.write_run(tmp_path, steps=20, every=0, eval_every=0)
    (folder / "grads.png").write_bytes(b"from an earlier run")
    publish(folder, report_of(), pytest.fail)
    assert not (folder / "grads.png").exists()
    assert "Gradients were not watched" in (folder / "report.html").read_text()


def test_a_plot_that_fails_costs_one_sentence_and_nothing_else(tmp_path, monkeypatch):
    folder = runs.write_run(tmp_path, steps=20, eval_every=0)
    monkeypatch.setattr("vlmdoctor.runs.plots.loss.draw_loss", lambda *_, **__: 1 / 0)
    complaints = []
    learned = publish(folder, report_of(), complaints.append)
    assert learned is not None
    assert complaints == [
        "loss.png and grads.png could not be made: division by zero.",
        "report.html could not be made: division by zero.",
    ]
    assert json.loads((folder / "summary.json").read_text())["verdict"] == "pass"


def test_a_run_that_cannot_be_read_back_costs_one_sentence(tmp_path):
    complaints = []
    assert publish(tmp_path, report_of(), complaints.append) is None
    assert len(complaints) == 1 and "no plots and no report" in complaints[0]


def test_a_full_disk_is_said_once_for_each_file(tmp_path, monkeypatch):
    folder = runs.write_run(tmp_path, steps=20, eval_every=0)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs, "write_whole", full)
    complaints = []
    publish(folder, report_of(), complaints.append)
    assert [line.split(" could")[0] for line in complaints] == ["summary.json", "report.html"]


@pytest.mark.parametrize(
    ("summary", "options", "headline", "uses_images"),
    [
        (
            {"accuracy": 0.956, "accuracy_shuffled": 0.11, "samples": 400},
            {"steps": 2000},
            "It uses its images: 95.6% accuracy, 11% with shuffled images",
            True,
        ),
        (
            {"accuracy": 0.35, "accuracy_shuffled": 0.1, "samples": 400},
            {"steps": 2000},
            "It begins to use its images: 35% accuracy, 10% with shuffled images",
            True,
        ),
        (
            {"accuracy": 0.13, "accuracy_shuffled": 0.1, "samples": 100},
            {"steps": 2000},
            "It does not use its images: 13% accuracy, 10% with shuffled images",
            False,
        ),
        (
            {"accuracy": 0.5},
            {"steps": 2000},
            "50% accuracy; whether it uses its images was not measured",
            None,
        ),
        (
            {},
            {"steps": 2000, "losses": [6.5] + [1.25] * 40},
            "2,000 steps taken, loss 6.50 to 1.25; the accuracy was not measured",
            None,
        ),
        (
            {"accuracy": 0.05, "accuracy_shuffled": 0.05},
            {"steps": 20, "losses": [6.5, 4.0]},
            "20 steps taken, loss 6.50 to 4.00; too few to judge what it learned",
            None,
        ),
        ({}, {"steps": 0}, "0 steps taken; too few to judge what it learned", None),
        ({}, {"steps": 1, "losses": [math.nan]}, "1 step taken; too few to judge what it learned", None),
    ],
)
def test_the_headline_says_what_was_learned(summary, options, headline, uses_images):
    found = verdict(summary, **options)
    assert found.headline == headline
    if uses_images is not None:
        assert found.uses_images is uses_images


def test_the_sentences_give_the_numbers():
    summary = {
        "accuracy": 0.95,
        "accuracy_shuffled": 0.1,
        "samples": 200,
        "loss": 0.16,
        "loss_shuffled": 3.4,
        "loss_blank": 2.6,
    }
    found = verdict(summary, steps=900, total=2000, finished=False, losses=[math.nan])
    assert found.sentences == (
        "Stopped after 900 of 2,000 steps.",
        "Answered 95% of 200 test questions exactly right, and 10% with shuffled images.",
        "Test loss 0.160 with the right images, 3.400 with shuffled images, 2.600 with blank ones: "
        "the images carry part of the answer.",
        "The training loss was not a number in some steps.",
    )
    same = verdict({"loss": 1.3, "loss_shuffled": 1.31}, steps=900)
    assert same.sentences[-1].endswith("the images make no difference.")


def test_percentages_read_well():
    assert [percent(share) for share in (0.0, 0.05, 0.956, 1.0)] == ["0%", "5%", "95.6%", "100%"]


def test_the_gradients_headline_names_what_is_not_reached(tmp_path):
    def kill(row):
        return {name: (0.0 if name == "grad_norm/projector" else value) for name, value in row.items()}

    from vlmdoctor.runs.columns import read_recording

    fine = read_recording(runs.write_run(tmp_path / "fine", steps=20, eval_every=0))
    dead = read_recording(runs.write_run(tmp_path / "dead", steps=20, eval_every=0, change=kill))
    assert grads_headline(fine) == "Gradients reach vision, projector and language"
    assert grads_headline(dead) == "No gradient reaches projector"


def vlmdoctor(*arguments, cwd):
    command = [sys.executable, "-m", "vlmdoctor", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_report_judges_a_recorded_run_again(tmp_path):
    folder = runs.write_run(tmp_path / "run", steps=300, eval_every=100)
    done = vlmdoctor("report", folder, "--output-format", "json", "--require-accuracy", "0.99", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert [finding["rule"] for finding in report["findings"]] == ["accuracy-below-gate"]
    assert report["command"] == "report" and report["target"] == "minivlm:tiny"
    assert "loss-not-falling" in report["ran"]
    assert {path.name for path in folder.iterdir()} >= {"loss.png", "grads.png", "report.html"}
    assert "It uses its images" in done.stderr


def test_report_of_a_healthy_run_is_quiet_about_it(tmp_path):
    folder = runs.write_run(tmp_path / "run", steps=300, eval_every=100)
    done = vlmdoctor("report", "run", "--no-draw", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("It uses its images: 95")
    assert "✓ 0 errors, 0 warnings · " in done.stdout
    assert not (folder / "report.html").exists()


def test_report_without_a_run_is_one_sentence(tmp_path):
    done = vlmdoctor("report", tmp_path / "nowhere", cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "there is no run folder" in done.stderr


def test_the_sentence_names_the_questions_that_count_and_the_others():
    said = verdict(
        {
            "accuracy": 0.9,
            "accuracy_shuffled": 0.1,
            "samples": 300,
            "accuracy_of": "left, right, both",
            "accuracy/left": 1.0,
            "accuracy/sum": 0.16,
            "accuracy/colour": None,
        },
        steps=2000,
    )
    assert said.sentences[0] == (
        "Answered 90% of 300 test questions (left, right, both) exactly right, and 10% with shuffled images."
    )
    assert said.sentences[1] == "Other questions, not counted there: sum 16%."
