"""Faults planted in configurations of full width: each is one finding that names its fields."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

from vlmdoctor.dryrun.command import DryRunOptions, dry_run
from vlmdoctor.dryrun.config_search import as_written, with_defaults
from vlmdoctor.dryrun.config_suspicions import suspicions
from vlmdoctor.examine import model_rules
from vlmdoctor.report import Report
from vlmdoctor.targets.processor_files import image_side
from vlmdoctor.targets.synthetic import consistent

CLASH, ROPE = "config-contradiction", "rope-settings-wrong"
RECKONED = ("layer_types", "head_dim")  # from other fields, where they are not written
YARN = {"rope_type": "yarn", "rope_theta": 1e4}
QWEN = {"rope_type": "default", "rope_theta": 1e6}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 4.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 1024,
}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0] * 40,
    "long_factor": [2.0] * 40,
    "original_max_position_embeddings": 4096,
}


def shallow(family: str) -> dict[str, Any]:
    """The default configuration of a family, two layers deep."""
    config = consistent(CONFIG_MAPPING[family]())
    values = config.to_dict()
    for part in (values, values.get("text_config"), values.get("vision_config")):
        for name in list(part or ()):
            if name in ("num_hidden_layers", "depth", "n_layer"):
                part[name] = 2
            elif name in ("layer_types", "head_dim") and part.get("model_type") in (
                "llama",
                "qwen2",
                "gemma",
            ):
                del part[name]
            elif name.endswith("layer_types") and part[name]:
                part[name] = part[name][:2]
    if family == "llava":
        values["image_token_index"] = 31999
    if family == "idefics3":
        values["vision_config"]["image_size"] = 256
    return values


def check(folder: Path, values: dict[str, Any]) -> Report:
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return dry_run(
        str(folder),
        DryRunOptions(),
        rules=model_rules(),
        trust_remote_code=False,
        fail_on="error",
        progress=lambda _: None,
    )


@pytest.mark.parametrize(
    ("family", "path", "value", "rule", "says"),
    [
        ("llava", "text_config.num_key_value_heads", 5, CLASH, "text_config.num_key_value_heads 5"),
        ("llava", "text_config.num_attention_heads", 33, CLASH, "text_config.hidden_size 4096"),
        ("llava", "vision_config.num_attention_heads", 15, CLASH, "vision_config.hidden_size 1024"),
        ("llava", "image_token_index", 40000, CLASH, "text_config.vocab_size 32000"),
        ("llava", "vision_feature_layer", -30, CLASH, "vision_config.num_hidden_layers is 2"),
        ("llava", "text_config.hidden_act", "gellu", CLASH, "text_config.hidden_act 'gellu'"),
        ("llava", "text_config.rope_parameters", YARN, CLASH, "lacks factor"),
        ("llava", "text_config.rope_parameters.rope_theta", -5.0, ROPE, "not positive numbers"),
        ("llava", "text_config.rope_parameters.rope_theta", 1.0, ROPE, "rope_theta is 1"),
        ("llava", "text_config.rope_parameters.rope_theta", 10.0, ROPE, "rope_theta 10"),
        ("llava", "text_config.rope_parameters", LLAMA3, ROPE, "low_freq_factor 4"),
        ("llava", "text_config.max_position_embeddings", 256, "images-exceed-context", "take 576 tokens"),
        ("qwen2_vl", "text_config.rope_parameters", QWEN | {"mrope_section": [16, 24, 20]},
         CLASH, "adds up to 60; half of the rotated part of a head is 64"),
        ("qwen2_vl", "vision_config.hidden_size", 1280, "shape-clash", "image_features is 1280 wide"),
        ("qwen2_vl", "vision_config.num_heads", 15, CLASH, "vision_config.embed_dim 1280"),
        ("qwen2_5_vl", "vision_config.num_heads", 12, CLASH, "vision_config.hidden_size 3584"),
        ("qwen2_5_vl", "text_config.vocab_size", 32000, CLASH, "image_token_id 151655"),
        ("gemma3", "text_config.head_dim", 255, CLASH, "text_config.head_dim 255 is odd"),
        ("paligemma", "text_config.num_key_value_heads", 3, CLASH, "num_key_value_heads 3"),
        ("idefics3", "text_config.num_key_value_heads", 12, CLASH, "num_key_value_heads 12"),
        ("mistral3", "text_config.num_key_value_heads", 6, CLASH, "num_key_value_heads 6"),
        ("phi3", "rope_parameters", LONG, CLASH, "rope_parameters.short_factor has 40 numbers"),
        ("mixtral", "num_experts_per_tok", 12, CLASH, "num_local_experts 8"),
        ("gpt2", "n_head", 13, CLASH, "n_embd 768"),
        ("gpt2", "n_positions", 8, CLASH, "n_positions is 8"),
        ("qwen2", "layer_types", ["full_attention"] * 3, CLASH, "layer_types has 3 entries"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_one_finding(
    tmp_path: Path, family: str, path: str, value: Any, rule: str, says: str
) -> None:
    values = shallow(family)
    *way, last = path.split(".")
    place = values
    for part in way:
        place = place[part]
    place[last] = value
    report = check(tmp_path, values)
    assert report.crashed == ()
    (finding,) = report.findings
    assert finding.rule == rule and says in finding.message, finding.message
    if rule == CLASH:
        assert finding.proof is not None and finding.severity == "error"


@pytest.mark.parametrize(
    "family", ["llava", "qwen2_vl", "qwen2_5_vl", "gemma3", "paligemma", "mistral3", "phi3"]
)
def test_nothing_is_found_without_one(tmp_path: Path, family: str) -> None:
    report = check(tmp_path, shallow(family))
    assert report.findings == () and report.crashed == ()
    assert "rope" in report.facts["dry_run"] and report.facts["dry_run"]["parts"]


def test_fields_are_named_as_config_json_spells_them() -> None:
    old = {"model_type": "qwen2_vl", "hidden_size": 64, "rope_scaling": {"type": "mrope"}}
    assert as_written("text_config.hidden_size", old) == "hidden_size"
    assert as_written("text_config.rope_parameters.mrope_section", old) == "rope_scaling.mrope_section"
    nested = {"text_config": {"hidden_size": 64}, "image_token_id": 7}
    assert as_written("text_config.hidden_size", nested) == "text_config.hidden_size"
    assert as_written("image_token_index", nested) == "image_token_id"


def test_what_is_not_written_has_the_default_of_its_type() -> None:
    values = with_defaults({"model_type": "llava", "text_config": {"model_type": "qwen2", "hidden_size": 99}})
    assert values["vision_config"]["hidden_size"] == 1024
    assert values["text_config"]["num_attention_heads"] == 32
    (suspicion,) = suspicions(values)
    assert suspicion.message.startswith("text_config.hidden_size 99 can't be divided among")


SQUARE = {"height": 336, "width": 336}
PROCESSORS: list[tuple[dict[str, Any], int | None]] = [
    (
        {"do_center_crop": True, "crop_size": {"height": 336, "width": 336}, "size": {"shortest_edge": 336}},
        336,
    ),
    ({"size": {"height": 224, "width": 224}}, 224),
    ({"image_processor": {"size": 224}}, 224),
    ({"size": {"shortest_edge": 3136, "longest_edge": 12845056}}, None),
    ({"do_resize": False, "size": {"height": 224, "width": 224}}, None),
    ({"size": {"height": -1, "width": -1}}, None),
]


@pytest.mark.parametrize(("processor", "side"), PROCESSORS)
def test_the_processor_says_how_large_images_are(
    tmp_path: Path, processor: dict[str, Any], side: int | None
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    assert image_side(tmp_path) == (None if side is None else (side, "preprocessor_config.json"))


def test_images_are_made_as_the_processor_makes_them(tmp_path: Path) -> None:
    values = shallow("llava")
    values["vision_config"]["image_size"] = 224
    size = {"height": 224, "width": 224}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": size}), encoding="utf-8")
    report = check(tmp_path, values)
    assert report.findings == ()
    assert report.facts["dry_run"]["image_tokens"] == 256
    assert "preprocessor_config.json" in report.facts["images"]

    (tmp_path / "preprocessor_config.json").write_text("{", encoding="utf-8")
    assert check(tmp_path, values).facts["images"] == "of the size that the configuration suggests"
