"""What is no configuration, or one that makes no model: a clear sentence and status 2, never a traceback."""

from __future__ import annotations

import json
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from mutations import mutated, outcome
from transformers.utils import is_timm_available

from benchmarks.detection.shrink import tiny_config
from vlmdoctor.cli.main import run

MUTATIONS = int(os.environ.get("VLMDOCTOR_MUTATIONS", "200"))

LLAMA: dict[str, Any] = tiny_config("llama").to_dict()
QWEN: dict[str, Any] = tiny_config("qwen2_vl").to_dict()


def changed(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    copied = json.loads(json.dumps(values))
    *way, last = path.split(".")
    place = copied
    for part in way:
        place = place[part]
    place[last] = value
    return copied


def refused(target: Path, capsys: pytest.CaptureFixture[str], *more: str) -> str:
    """What stands on standard error, in a line, after a run that ends with status 2."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "argv", ["vlmdoctor", "check", str(target), *more])
        run()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert "Traceback" not in said.out + said.err and said.out == ""
    assert len(said.err.strip()) < 700
    return " ".join(said.err.split())


WITH_CODE = {"model_type": "my_vlm", "auto_map": {"AutoConfig": "code.MyConfig", "AutoModel": "code.MyModel"}}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "can't be read as JSON"),
        ("{", "can't be read as JSON"),
        (json.dumps(LLAMA)[:-40], "can't be read as JSON"),
        ("weights: 7", "can't be read as JSON"),
        ("\x00\x01", "can't be read as JSON"),
        ("[1, 2]", "holds no JSON object"),
        ("3", "holds no JSON object"),
        ("{}", "makes no model configuration"),
        ('{"hidden_size": 64}', "makes no model configuration"),
        ('{"model_type": "my_vlm"}', "makes no model configuration"),
        ('{"model_type": 7}', "makes no model configuration"),
        (json.dumps(WITH_CODE), "--trust-remote-code"),
        (changed(LLAMA, "hidden_size", "wide"), "hidden_size"),
        (changed(LLAMA, "hidden_size", -64), "hidden_size|can't be built"),
        (changed(LLAMA, "hidden_size", 0), "hidden_size is 0"),
        (changed(LLAMA, "hidden_size", 10**18), "can't be built|makes no model"),
        (changed(LLAMA, "hidden_size", float("nan")), "hidden_size"),
        (changed(LLAMA, "hidden_size", {"a": [1, {"b": None}]}), "hidden_size"),
        (changed(LLAMA, "num_hidden_layers", 10**18), "num_hidden_layers"),
        (changed(LLAMA, "num_attention_heads", 0), "num_attention_heads is 0"),
        (changed(LLAMA, "vocab_size", 10**18), "can't be built"),
        (changed(LLAMA, "vocab_size", -5), "can't be built|vocab_size"),
        (changed(QWEN, "vision_config", "none"), "makes no model|can't be built"),
        (changed(QWEN, "text_config", 3), "makes no model|can't be built"),
        (changed(QWEN, "vision_config.depth", "many"), "depth"),
        (changed(QWEN, "vision_config.patch_size", -14), "can't be built|patch"),
    ],
)
def test_no_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: Any, says: str
) -> None:
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    assert re.search(says, refused(tmp_path, capsys))


def test_a_folder_without_a_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "has no config.json" in refused(tmp_path, capsys, "--depth", "shapes")


def test_a_huge_vocabulary_costs_no_memory(tmp_path: Path) -> None:
    assert outcome(tmp_path, changed(LLAMA, "vocab_size", 1 << 30)) == "judged"


@pytest.mark.parametrize("depth", ["shapes", "static"])
@pytest.mark.parametrize(
    ("raised", "says"),
    [
        (
            "\nLlamaModel requires the rare_pkg library but it was not found in your environment. You can "
            "install it with pip: `pip install rare-pkg`. Please note that you may need to restart.\n",
            "LlamaForCausalLM needs the package rare_pkg, which is not installed; install it with: "
            "pip install rare-pkg",
        ),
        ("no rare_pkg", "LlamaForCausalLM needs a package that is not installed: no rare_pkg."),
    ],
)
def test_a_package_that_is_missing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    depth: str,
    raised: str,
    says: str,
) -> None:
    import transformers

    def wants(config: Any, **kwargs: Any) -> Any:
        raise ImportError(raised)

    monkeypatch.setattr(transformers.LlamaForCausalLM, "_from_config", wants)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    assert refused(tmp_path, capsys, "--depth", depth) == f"vlmdoctor: {says}"


@pytest.mark.skipif(is_timm_available(), reason="timm is installed")
@pytest.mark.parametrize("family", ["fast_vlm", "gemma3n", "perception_lm"])
def test_families_whose_tower_is_of_timm_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], family: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}), encoding="utf-8")
    said = refused(tmp_path, capsys)
    assert said.endswith("needs the package timm, which is not installed; install it with: pip install timm")


def test_no_mutated_configuration_ends_in_a_traceback(tmp_path: Path) -> None:
    """Over all families; `VLMDOCTOR_MUTATIONS=10000` tries as many. All failures are told at once."""
    failures = []

    @settings(
        max_examples=MUTATIONS,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(made=mutated())
    def tried(made: Any) -> None:
        family, changes, values = made
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = outcome(tmp_path, values)
        if found not in ("told", "refused", "judged"):
            failures.append((family, changes, found))

    tried()
    assert failures == []
