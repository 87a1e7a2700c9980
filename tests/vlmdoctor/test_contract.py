"""What a run is meant to be: inferred, written into pyproject.toml beside the rest, and enforced."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_vlm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vlmdoctor
from vlmdoctor import contract
from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import UserError
from vlmdoctor.evidence.contract_status import ContractStatus
from vlmdoctor.probes.model.contract import inferred
from vlmdoctor.report import Report
from vlmdoctor.settings import load
from vlmdoctor.settings_file import nearest, with_contract
from vlmdoctor.subject import Subject

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"vision": "frozen"}, {"vision": "frozen"}),
        ({"projector": "train,lr 1e-3"}, {"projector": "train, lr 0.001"}),
        ({"image tokens": "64"}, {"image-tokens": "64 per image"}),
        ({"image_tokens": 64}, {"image-tokens": "64 per image"}),
        ({"supervise": "assistant+stop"}, {"supervise": "assistant + stop"}),
        ({"precision": "bfloat16"}, {"precision": "bf16"}),
        ({"steps": 40000}, {"steps": "40000"}),
    ],
)
def test_terms_have_one_spelling(given: dict[str, Any], kept: dict[str, str]) -> None:
    assert contract.parse(given, "here") == kept


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"visoin": "frozen"}, "unknown term 'visoin' in here (did you mean 'vision'?)"),
        ({"colour": "red"}, "known are vision, projector"),
        ({"vision": "frosen"}, "can't be 'frosen' (did you mean 'frozen'?)"),
        ({"vision": "frozen, lr 1e-3"}, "can't be 'frozen, lr 1e-3'"),
        ({"projector": "train, lr fast"}, "did you mean 'train, lr 0.001'"),
        ({"steps": -3}, "can't be -3"),
        ({"steps": True}, "can't be True"),
        ({"steps": "²"}, "can't be '²'"),
        ({"image-tokens": 0}, "can't be 0"),
        ({"precision": ["bf16"]}, "can't be ['bf16']"),
        ("frozen", "must be a table"),
    ],
)
def test_nonsense_is_one_sentence(table: Any, words: str) -> None:
    with pytest.raises(UserError) as raised:
        contract.parse(table, "here")
    assert words in str(raised.value)


def model_and_optimizer(*frozen: str) -> tuple[tiny_vlm.TinyVLM, torch.optim.Optimizer]:
    model = tiny_vlm.TinyVLM(tied=False)
    for part in frozen:
        model.get_submodule(part).requires_grad_(False)
    model.config = SimpleNamespace(vocab_size=97, image_token_id=tiny_vlm.IMAGE_TOKEN, eos_token_id=1)
    return model, tiny_vlm.adamw(model)


def seen(*frozen: str, **fields: Any) -> dict[str, str]:
    model, optimizer = model_and_optimizer(*frozen)
    given = {"batch": tiny_vlm.batch(0), "optimizer": optimizer} | fields
    return inferred(Gatherer(Subject(model, **given), depth="static")(ContractStatus))


def test_a_contract_is_inferred() -> None:
    assert seen("vision_encoder", training_args={"bf16": True, "max_steps": 40000}) == {
        "vision": "frozen",
        "projector": "train, lr 0.003",
        "language": "train, lr 0.003",
        "head": "train, lr 0.003",
        "supervise": "assistant + stop",
        "image-tokens": "4 per image",
        "precision": "bf16",
        "steps": "40000",
    }


def test_what_can_not_be_told_is_left_out() -> None:
    assert not {"precision", "steps", "supervise"} & set(seen(batch=None))
    foreign = tiny_vlm.batch(0)
    foreign["labels"] = foreign["labels"].roll(-3, dims=1)
    assert "supervise" not in seen(batch=foreign)


def test_labels_that_the_collator_shifts_are_read_too() -> None:
    shifted = tiny_vlm.batch(0)
    shifted["labels"] = shifted["labels"].roll(-1, dims=1)
    assert seen(batch=shifted)["supervise"] == "assistant + stop"


def test_what_is_supervised_is_told_apart() -> None:
    data = tiny_vlm.batch(0)
    data["labels"][:, -1] = -100
    assert seen(batch=data)["supervise"] == "assistant"
    data["labels"] = data["input_ids"].clone()
    assert seen(batch=data)["supervise"] == "everything"


def test_lora_is_seen() -> None:
    peft = pytest.importorskip("peft")
    model, _ = model_and_optimizer()
    config = peft.LoraConfig(target_modules=r"language_model\.layers\.\d+\.qkv")
    adapted = peft.PeftModel(model, config)
    terms = inferred(Gatherer(Subject(adapted), depth="static")(ContractStatus))
    assert (terms["vision"], terms["language"]) == ("frozen", "lora")


def check(*frozen: str, select: tuple[str, ...] = ("CFG", "PARAM"), **options: Any) -> Report:
    model, optimizer = model_and_optimizer(*frozen)
    given = {"batch": tiny_vlm.batch(0), "optimizer": optimizer} | options
    # What is frozen here stands for something trained.
    return vlmdoctor.check(model, **given, select=select, ignore=["frozen-untrained"])


def test_what_is_inferred_is_kept() -> None:
    terms = seen("vision_encoder")
    report = check("vision_encoder", contract=terms, select=())
    assert report.findings == ()
    assert report.facts["contract"]["expected"] == terms


def test_frozen_against_the_contract_is_an_error_with_proof() -> None:
    report = check("vision_encoder", "vision_proj", contract={"vision": "frozen", "projector": "train"})
    (finding,) = report.findings
    assert (finding.rule, finding.severity) == ("contract-broken", "error")
    assert (finding.threshold, finding.measured) == ({"projector": "train"}, {"projector": "frozen"})
    assert finding.at == ("vision_proj (2 tensors)",)
    assert any("declared as trainable" in symptom for symptom in finding.symptoms)
    assert finding.proof is not None and finding.proof.works
    assert finding.proof.after.startswith("2 of 2 get a gradient")


def test_trained_against_the_contract() -> None:
    (finding,) = check(contract={"vision": "frozen"}).findings
    assert finding.message == "the vision encoder: the contract says 'frozen', the run has 'train, lr 0.003'"
    assert finding.proof is None and "inferred" not in (finding.cause or "")


def test_the_contract_settles_what_would_be_a_warning() -> None:
    frozen = ("vision_proj", "language_model", "lm_head")
    model, _ = model_and_optimizer(*frozen)
    optimizer = torch.optim.AdamW(model.parameters())
    doubtful = vlmdoctor.check(model, optimizer=optimizer, select=["PARAM101"])
    assert [f.rule for f in doubtful.findings] == ["frozen-by-mistake"]
    meant = {"projector": "frozen", "language": "frozen", "head": "frozen"}
    settled = vlmdoctor.check(model, optimizer=optimizer, contract=meant, select=["PARAM101", "CFG"])
    assert settled.findings == ()


@pytest.mark.parametrize(
    ("terms", "fields", "found"),
    [
        ({"projector": "train, lr 1e-5"}, {}, "train, lr 0.003"),
        ({"supervise": "everything"}, {}, "assistant + stop"),
        ({"image-tokens": 64}, {}, "4 per image"),
        ({"steps": 100}, {"training_args": {"max_steps": 40000}}, "40000"),
        ({"precision": "bf16"}, {"training_args": {"fp16": True}}, "fp16"),
        ({"language": "lora"}, {}, "train, lr 0.003"),
        ({"new-token-rows": "frozen"}, {}, "train"),
    ],
)
def test_each_term_is_enforced(terms: dict[str, Any], fields: dict[str, Any], found: str) -> None:
    (finding,) = check(contract=terms, select=("CFG110",), **fields).findings
    assert list(finding.measured.values()) == [found]


@pytest.mark.parametrize(
    "terms", [{"precision": "bf16"}, {"steps": 100}, {"projector": "train, lr 0.00301"}, {"head": "train"}]
)
def test_what_can_not_be_told_or_hardly_differs_is_no_deviation(terms: dict[str, Any]) -> None:
    assert check(contract=terms, select=("CFG110",)).findings == ()


# --- The file ---------------------------------------------------------------------------------------

OTHER = '# kept\n[project]\nname = "x"   # and this\n\n[tool.ruff]\nline-length = 110\n'
LINES = 'vision = "frozen"\nsteps = 40000\n'


@pytest.mark.parametrize("text", ["", OTHER, OTHER.rstrip("\n"), OTHER.replace("\n", "\r\n")])
def test_the_rest_of_the_file_stays_byte_for_byte(text: str) -> None:
    changed = with_contract(text, LINES, Path("p"), force=False)
    assert changed.startswith(text)
    assert tomllib.loads(changed)["tool"]["vlmdoctor"]["contract"] == {"vision": "frozen", "steps": 40000}


def test_an_old_contract_is_replaced_in_place_and_only_by_force() -> None:
    old = "[tool.vlmdoctor]\nfail-on = 'error'\n\n[ tool.vlmdoctor.contract ]  # ours\nhead = 'train'\n"
    text = old + "\n# about ruff\n[tool.ruff]\nline-length = 3\n"
    with pytest.raises(UserError, match="--force replaces it"):
        with_contract(text, LINES, Path("p"), force=False)
    changed = with_contract(text, LINES, Path("p"), force=True)
    assert changed == (
        f"[tool.vlmdoctor]\nfail-on = 'error'\n\n[tool.vlmdoctor.contract]\n{LINES}"
        "\n# about ruff\n[tool.ruff]\nline-length = 3\n"
    )


@pytest.mark.parametrize(
    "text",
    [
        "tool = {vlmdoctor = {fail-on = 'error'}}\n",
        "[tool]\nvlmdoctor = {contract = {head = 'train'}}\n",
        "[tool.vlmdoctor]\ncontract.head = 'train'\n",
    ],
)
def test_a_form_that_can_not_be_added_to_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="by hand"):
        with_contract(text, LINES, Path("p"), force=True)


def test_a_file_that_is_not_toml_is_refused() -> None:
    with pytest.raises(UserError, match="is not valid TOML"):
        with_contract("[tool", LINES, Path("p"), force=False)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="ascii", categories=["L"]), min_size=1), st.text()))
def test_any_other_section_survives(values: dict[str, str]) -> None:
    import json

    text = "[tool.other]\n" + "".join(
        f"{key} = {json.dumps(value)}\n" for key, value in values.items() if "\x7f" not in value
    )
    try:
        before = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return  # JSON's surrogate escapes are not TOML's
    once = with_contract(text, LINES, Path("p"), force=False)
    assert once.startswith(text) and tomllib.loads(once)["tool"]["other"] == before["tool"]["other"]
    assert with_contract(once, LINES, Path("p"), force=True) == once


def test_the_nearest_file_is_taken(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("")
    assert nearest(inner) == tmp_path / "pyproject.toml"


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vlmdoctor", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONPATH": str(ROOT)},
        timeout=120,
    )


def test_init_writes_and_check_enforces(tmp_path: Path) -> None:
    example = f"{ROOT / 'examples' / 'frozen_by_mistake_fixed.py'}:build"
    path = tmp_path / "pyproject.toml"
    path.write_text(OTHER)
    shown = run("init", example, "--dry-run", cwd=tmp_path)
    assert shown.returncode == 0 and path.read_text() == OTHER
    done = run("init", example, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == shown.stdout == path.read_text().removeprefix(OTHER + "\n")
    assert load(tmp_path).contract is not None
    again = run("init", example, cwd=tmp_path)
    assert again.returncode == 2 and "--force replaces it" in again.stderr
    path.write_text(path.read_text().replace('vision = "', 'vision = "nonsense, '))
    refused = run("check", example, cwd=tmp_path)
    assert refused.returncode == 2 and "can't be 'nonsense" in refused.stderr
