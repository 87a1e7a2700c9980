"""What a caller in Python may write, and what is said to one who wrote something else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_vlm import TinyVLM, adamw, batch

import vlmdoctor
from vlmdoctor.examine import model_rules
from vlmdoctor.rulebook import select_rules

HERE = Path(__file__).parent
SCRIPT = """
import sys

sys.path.insert(0, {here!r})
from tiny_vlm import TinyVLM, adamw, batch


def build():
    model = TinyVLM(way="data")
    return model, batch(0), adamw(model)
"""


def build() -> Any:
    model = TinyVLM(way="data")
    return model, batch(0), adamw(model)


def ran(report: Any) -> list[str]:
    return [finding.rule for finding in report.findings]


@pytest.mark.parametrize("form", ["function", "tuple", "positions", "keywords", "subject", "class"])
def test_the_forms_of_a_subject(form: str) -> None:
    model, given, optimizer = build()
    report = {
        "function": lambda: vlmdoctor.check(build),
        "tuple": lambda: vlmdoctor.check((model, given, optimizer)),
        "positions": lambda: vlmdoctor.check(model, given, optimizer),
        "keywords": lambda: vlmdoctor.check(model=model, batch=given, optimizer=optimizer),
        "subject": lambda: vlmdoctor.check(vlmdoctor.Subject(model, given, optimizer=optimizer)),
        "class": lambda: vlmdoctor.check(lambda: TinyVLM(way="data"), given, optimizer=optimizer),
    }[form]()
    expected = ["optimizer-holds-other-tensors"] if form == "class" else ["no-gradient"]
    assert set(expected) <= set(ran(report)) | {s for f in report.findings for s in f.symptoms}


def test_what_is_said_wins_over_what_a_function_brings() -> None:
    report = vlmdoctor.check(build, {**batch(1), "labels": batch(1)["labels"].fill_(-100)})
    assert "nothing-supervised" in ran(report)


def test_a_target_of_the_command_line() -> None:
    report = vlmdoctor.check("minivlm:tiny", select="GRAD", depth="static")
    assert report.target == "minivlm:tiny"


@pytest.mark.parametrize("selector", ["GRAD", ["GRAD"], ("GRAD",), "GRAD,", " GRAD ", "grad"])
def test_one_selector_is_no_list_of_letters(selector: Any) -> None:
    if selector == "GRAD,":
        selector = "GRAD,GRAD201"
    found = select_rules(model_rules(), selector)
    assert found and all(rule.code.startswith("GRAD") for rule in found)


def test_several_selectors_in_one_text() -> None:
    found = {rule.area for rule in select_rules([], "GRAD, ROPE")}
    assert found == {"GRAD", "ROPE"}


def test_python_and_the_command_line_run_the_same_rules(tmp_path: Path) -> None:
    file = tmp_path / "model.py"
    file.write_text(SCRIPT.format(here=str(HERE)))
    command = [sys.executable, "-m", "vlmdoctor", "check", "model.py:build", "--output-format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    told = json.loads(done.stdout)
    code = "import json, vlmdoctor, model; print(json.dumps(vlmdoctor.check(model.build).to_dict()))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    said = json.loads(done.stdout)
    assert [f["rule"] for f in said["findings"]] == [f["rule"] for f in told["findings"]] == ["no-gradient"]
    for key in ("ran", "skipped", "crashed", "coverage"):
        assert said[key] == told[key], key
    assert any(name.endswith("-in-source") for name in said["ran"])


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, b, o: vlmdoctor.check(b, m), "takes the model first and the batch second"),
        (lambda m, b, o: vlmdoctor.check(None), "takes the model first"),
        (lambda m, b, o: vlmdoctor.check(lambda: 3), "returned an object of type int"),
        (lambda m, b, o: vlmdoctor.check(lambda x: m), r"needs arguments \(x\)"),
        (lambda m, b, o: vlmdoctor.check("nothing/here"), "nothing/here"),
        (lambda m, b, o: vlmdoctor.check(m, b, select="GRADD"), "did you mean 'GRAD'"),
        (lambda m, b, o: vlmdoctor.watch(o, m), "takes the model first and the optimizer second"),
        (lambda m, b, o: vlmdoctor.watch(m, m), "takes one model, and the optimizer second"),
        (lambda m, b, o: vlmdoctor.watch(m, 3), "takes the optimizer second, or a list of them, not int"),
        (lambda m, b, o: vlmdoctor.watch(m, m.parameters()), "takes the optimizer second"),
        (lambda m, b, o: vlmdoctor.check(m, o), "the second argument is an optimizer"),
        (lambda m, b, o: vlmdoctor.watch(b), "needs a torch.nn.Module to watch, not dict"),
    ],
)
def test_bad_use_is_one_sentence(call: Any, sentence: str) -> None:
    model, given, optimizer = build()
    with pytest.raises(vlmdoctor.UserError, match=sentence) as error:
        call(model, given, optimizer)
    assert "\n" not in str(error.value)
