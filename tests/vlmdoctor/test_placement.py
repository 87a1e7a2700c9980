"""Tensors that were left on the meta device."""

from __future__ import annotations

import tiny_vlm
import torch
from torch import nn

import vlmdoctor


def rules(model: nn.Module) -> list[str]:
    report = vlmdoctor.check(model, tiny_vlm.batch(0))
    assert report.crashed == ()
    return [finding.rule for finding in report.findings]


def test_what_was_not_loaded_is_an_error() -> None:
    with torch.device("meta"):
        model = tiny_vlm.TinyVLM(tied=False)
    state = tiny_vlm.TinyVLM(tied=False).state_dict()
    kept = {name: value for name, value in state.items() if not name.startswith("vision_proj")}
    model.load_state_dict(kept, strict=False, assign=True)
    report = vlmdoctor.check(model, tiny_vlm.batch(0))
    (finding,) = report.findings
    assert finding.rule == "left-on-meta" and report.verdict == "fail"
    assert finding.at == ("vision_proj.weight", "vision_proj.bias")


def test_a_table_that_no_checkpoint_holds() -> None:
    model = tiny_vlm.TinyVLM()
    model.language_model.register_buffer("table", torch.empty(3, device="meta"), persistent=False)
    assert rules(model) == ["left-on-meta"]


def test_weights_that_hooks_fetch_are_not_lost() -> None:
    model = tiny_vlm.TinyVLM()
    model.vision_proj.to("meta")
    model.vision_proj._hf_hook = object()  # as accelerate leaves on what it offloads
    assert "left-on-meta" not in rules(model)
