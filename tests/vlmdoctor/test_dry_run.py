"""The dry run: what it carries, what it refuses, what it says of a configuration, and on the command line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import families
import pytest
import torch
import transformers
from torch import nn
from typer.testing import CliRunner

import vlmdoctor.dryrun.repeated as repeated_module
from vlmdoctor.cli.main import build_app
from vlmdoctor.dryrun.abstract import Abstract
from vlmdoctor.dryrun.command import DryRunOptions, dry_run, wanted
from vlmdoctor.dryrun.cost import cost_of
from vlmdoctor.dryrun.measure import measure
from vlmdoctor.dryrun.meta_copy import meta_copy
from vlmdoctor.dryrun.plan import Plan, shapes_under
from vlmdoctor.dryrun.repeated import Repeated
from vlmdoctor.dryrun.step import dry_step
from vlmdoctor.dryrun.unknown import ValueUnknown
from vlmdoctor.errors import UserError
from vlmdoctor.examine import model_rules
from vlmdoctor.report import Report
from vlmdoctor.reporters import full
from vlmdoctor.subject import Subject
from vlmdoctor.targets.synthetic import batch_for


def check(target: str, **options: Any) -> Report:
    return dry_run(
        target,
        DryRunOptions(**options),
        rules=model_rules(),
        trust_remote_code=False,
        fail_on="error",
        progress=lambda _: None,
    )


def tiny_llava() -> dict[str, Any]:
    model, _ = families.build("llava")
    return {**model.config.to_dict(), "architectures": ["LlavaForConditionalGeneration"]}


def written(folder: Path, values: Any) -> str:
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    return str(folder)


def test_integers_are_real_and_weights_abstract() -> None:
    weight = torch.empty(10, 4, device="meta", requires_grad=True)
    with Abstract():
        ids = torch.arange(6, device="meta")
        rows = nn.functional.embedding(ids, weight)
        chosen = rows[ids > 2]
        chosen.sum().backward()
    assert ids.tolist() == [0, 1, 2, 3, 4, 5]
    assert rows.is_meta and chosen.shape == (3, 4)
    assert weight.grad is not None and weight.grad.shape == (10, 4)


def test_an_index_out_of_range_raises_as_it_would() -> None:
    weight = torch.empty(10, 4, device="meta")
    with Abstract(), pytest.raises(IndexError, match="go up to 10, there are 10 rows"):
        nn.functional.embedding(torch.tensor([10]), weight)


@pytest.mark.parametrize(
    "needs",
    [
        lambda x: x.argmax().item(),
        lambda x: float(x.sum()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: bool((x > 0).any()),
    ],
)
def test_what_needs_a_value_is_named_and_not_guessed(needs: Any) -> None:
    with Abstract(), pytest.raises(ValueUnknown, match="aten"):
        needs(torch.empty(4, 4, device="meta"))


def test_a_loss_may_be_read_for_a_log_but_not_decided_on() -> None:
    with Abstract():
        loss = torch.empty(4, device="meta").sum()
        mean = (0.0 + loss.item()) / 3
        assert f"{mean:.3f} {mean}" == "nan nan"
        assert (loss * mean).is_meta and math.isfinite(round(mean, 3)) and math.log(mean) is not None
        for decides in (bool, int, round, lambda x: x > 1, lambda x: max(0.5, x), lambda x: x == 1.0):
            with pytest.raises(ValueUnknown, match="decided on"):
                decides(mean)


def test_an_operator_seen_before_gives_new_tensors_of_the_same_shape() -> None:
    repeated = Repeated()
    a, b = torch.empty(3, 4, device="meta"), torch.empty(4, 5, device="meta")
    first, again = (repeated(torch.ops.aten.mm.default, (a, b), {}) for _ in range(2))
    assert again.shape == (3, 5) and again.is_meta
    assert first.untyped_storage()._cdata != again.untyped_storage()._cdata
    whole = torch.empty(2, 2, device="meta", dtype=torch.int64)
    for exponent, dtype in ((2, torch.int64), (2.0, torch.float32), (2, torch.int64)):  # equal as keys
        assert repeated(torch.ops.aten.pow.Tensor_Scalar, (whole, exponent), {}).dtype is dtype


def test_an_operator_that_shares_memory_though_it_does_not_say_so_is_run_each_time() -> None:
    repeated, a = Repeated(), torch.empty(3, 4, device="meta")
    for _ in range(3):
        viewed = repeated(torch.ops.aten._unsafe_view.default, (a, [12]), {})
        assert viewed.untyped_storage()._cdata == a.untyped_storage()._cdata


def test_layers_alike_are_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    described = repeated_module._described
    monkeypatch.setattr(repeated_module, "_described", lambda *a: asked.append(1) or described(*a))
    model, batch = families.build("llava")
    dry_step(meta_copy(model), batch)
    few = len(asked)
    model.config.text_config.num_hidden_layers = 12
    deeper = type(model)(model.config)
    dry_step(meta_copy(deeper), batch)
    assert few > 0 and len(asked) - few <= few


def test_the_model_is_left_alone() -> None:
    model, batch = families.build("llava")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = dry_step(meta_copy(model), batch)
    assert step.error is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("family", list(families.VLMS))
def test_a_batch_is_made_from_the_configuration(family: str) -> None:
    model, _ = families.build(family)
    batch = batch_for(model, images=2, batch_size=2)
    loss = model(**batch).loss
    assert torch.isfinite(loss)


def test_checkpointing_saves_less_and_computes_more() -> None:
    model, batch = families.build("llama")
    plain = shapes_under(Subject(model, batch), Plan())
    again = shapes_under(Subject(model, batch), Plan(checkpointing=True))
    assert again.failure is None
    assert again.saved_bytes < plain.saved_bytes
    assert again.flops_backward > plain.flops_backward


def test_the_cost_counts_what_adamw_holds() -> None:
    model, batch = families.build("qwen2")
    measured = measure(Subject(model, batch), Plan())
    size = sum(p.nbytes for p in model.parameters())
    cost = cost_of(measured)
    assert (cost.gradients, cost.optimizer) == (size, 2 * size)
    assert cost.peak >= 4 * size


def test_a_clash_is_named_by_its_values(tmp_path: Path) -> None:
    transformers.Qwen2VLConfig().save_pretrained(tmp_path)
    report = check(str(tmp_path))
    (finding,) = report.findings
    assert finding.rule == "shape-clash"
    assert "3584 wide (vision_config.hidden_size)" in finding.message
    assert "8192 (text_config.hidden_size)" in finding.message


def test_a_healthy_model_is_told_its_cost(tmp_path: Path) -> None:
    report = check(written(tmp_path, tiny_llava()), gpu="T4")
    assert report.findings == () and report.exit_status == 0
    told = report.facts["dry_run"]
    # The features are those of the last layer but one: nothing reaches the last one.
    assert all("layers.2." in name or "post_layernorm" in name for name in told["without_gradient"])
    assert told["cost"]["gpu"]["fits"] and told["cost"]["gpu"]["largest_batch"] > 1000
    json.dumps(report.to_dict())


@pytest.mark.parametrize("output_format", ["full", "json", "html"])
def test_on_the_command_line(tmp_path: Path, output_format: str) -> None:
    target = written(tmp_path, tiny_llava())
    result = CliRunner().invoke(build_app(), ["check", target, "-v", "--output-format", output_format])
    assert result.exit_code == 0, result.output
    assert "language_model" in result.stdout and "layers.*" in result.stdout


def test_a_factory_allocates_nothing(tmp_path: Path) -> None:
    source = """
import torch
from torch import nn

class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_proj = nn.Linear(1 << 20, 1 << 20)

    def forward(self, pixels):
        return self.vision_proj(pixels).sum()

def build():
    return Wide(), {"pixels": torch.randn(1, 1 << 20)}
"""
    (tmp_path / "wide.py").write_text(source, encoding="utf-8")
    report = check(f"{tmp_path / 'wide.py'}:build", gpu="h200")
    assert [finding.rule for finding in report.findings] == ["gpu-too-small"]
    assert report.facts["parameters"] == (1 << 40) + (1 << 20)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gpu": "abacus"}, "--gpu can't be 'abacus'"),
        ({"precision": "fp4"}, "--precision can't be"),
        ({"optimizer": "hope"}, "--optimizer can't be"),
        ({"batch_size": 1 << 30}, "more than the dry run takes"),
    ],
)
def test_a_setting_that_there_is_not(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check(written(tmp_path, tiny_llava()), **options)


def test_dry_run_options_belong_to_their_depth() -> None:
    with pytest.raises(UserError, match="--gpu belongs to --depth shapes"):
        wanted("minivlm", "forward", DryRunOptions(gpu="t4"))
    assert wanted("minivlm", None, DryRunOptions(gpu="t4"))
    assert not wanted("minivlm", None, DryRunOptions())


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_table_stays_in_the_terminal(tmp_path: Path, width: int) -> None:
    report = check(written(tmp_path, tiny_llava()))
    text = full.render(report, color=False, verbose=True, quiet=False, width=width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    first = next(i for i, line in enumerate(lines) if line.startswith("module "))
    table = lines[first : lines.index("", first)]
    # One line for each module, cells under their headings, parts indented under what holds them.
    assert all(line.endswith(("yes", "not all")) for line in table[1:])
    assert any(line.startswith("    vision_tower ") for line in table)
    assert ("CLIPVisionModel" in text) == (width >= 130)
    assert [line.split()[0] for line in lines if line.startswith(("vision", "projector", "all"))] == [
        "vision",
        "projector",
        "all",
    ]


def test_roles_and_what_gets_no_gradient_are_told(tmp_path: Path) -> None:
    report = check(written(tmp_path, tiny_llava()))
    told = report.facts["dry_run"]
    parts = {part["role"]: part for part in told["parts"]}
    assert sum(part["parameters"] for part in parts.values()) == report.facts["parameters"]
    assert parts["vision"]["without_gradient"] > 0 == parts["language"]["without_gradient"]
    assert all(idle["why"].startswith("unused by design") for idle in told["idle"])
    (rope,) = told["rope"]
    assert (rope["part"], rope["head_dim"], rope["rotated"]) == ("text", 8, 8)
