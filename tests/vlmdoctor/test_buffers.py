"""Tables beside the weights: rounded, garbage, or made from another base."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers as hf
from families import DECODERS, TEXT, VLMS, build
from torch import nn

import vlmdoctor
from vlmdoctor.finding import Finding

LONG = {**TEXT, "max_position_embeddings": 2048}


def findings(model: nn.Module, select: str = "ROPE") -> list[Finding]:
    report = vlmdoctor.check(model, depth="static", select=[select], fail_on="never")
    assert report.crashed == ()
    return list(report.findings)


@pytest.mark.parametrize("family", [*DECODERS, *VLMS])
def test_tables_as_they_were_made(family: str) -> None:
    assert findings(build(family)[0]) == []


def test_frequencies_cast_to_bfloat16() -> None:
    (finding,) = findings(hf.LlamaForCausalLM(hf.LlamaConfig(**LONG)).to(torch.bfloat16))
    assert (finding.rule, finding.severity) == ("rotary-table-rounded", "warning")
    assert finding.measured["largest_error_of_a_cosine"] > 0.1


def test_casting_back_does_not_help() -> None:
    (finding,) = findings(hf.LlamaForCausalLM(hf.LlamaConfig(**LONG)).to(torch.bfloat16).float())
    assert finding.rule == "rotary-table-rounded"


def test_weights_in_bfloat16_with_frequencies_in_float32() -> None:
    model = hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**LONG), dtype=torch.bfloat16)
    assert next(model.parameters()).dtype == torch.bfloat16
    assert findings(model) == []


@pytest.mark.parametrize("left", ["zeros", "noise", "nan"])
def test_garbage_after_meta(left: str) -> None:
    model = build("qwen2_vl")[0]
    for module in model.modules():
        if hasattr(module, "inv_freq"):
            values = {
                "zeros": torch.zeros_like(module.inv_freq),
                "noise": torch.rand(module.inv_freq.shape, generator=torch.Generator().manual_seed(0)),
                "nan": torch.full_like(module.inv_freq, torch.nan),
            }
            module.inv_freq = values[left]
    (finding,) = findings(model)
    assert finding.rule == "uninitialised-buffer"
    assert "model.language_model.rotary_emb.inv_freq" in finding.at


def test_position_ids_of_a_vision_tower() -> None:
    model = build("llava")[0]
    model.model.vision_tower.embeddings.position_ids.zero_()
    (finding,) = findings(model)
    assert finding.at == ("model.vision_tower.embeddings.position_ids",)


class ByHand(nn.Module):
    """Tables that read the base as it was before transformers 5."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.config = SimpleNamespace(rope_parameters={"rope_type": "default", "rope_theta": 1e6})
        angles = torch.outer(torch.arange(64).float(), theta ** (-torch.arange(0, 16, 2).float() / 16))
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
        self.register_buffer("inv_freq", theta ** (-torch.arange(0, 16, 2).float() / 16))


def test_another_base_than_the_configuration() -> None:
    (finding,) = findings(ByHand(1e4))
    assert finding.rule == "rope-theta-differs"
    assert "theta 10000" in finding.message and "1e+06" in finding.message
    assert findings(ByHand(1e6)) == []


def test_scaled_frequencies_are_meant() -> None:
    scaled = {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = hf.LlamaConfig(**{**LONG, "rope_parameters": scaled})
    assert findings(hf.LlamaForCausalLM(config)) == []
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**{**TEXT, "rope_parameters": dynamic}))
    model(torch.ones(1, 100, dtype=torch.long))
    assert findings(model) == []


def test_frequencies_that_the_default_type_never_reads_may_be_rounded() -> None:
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**LONG))
    rotary = model.model.rotary_emb
    rotary.original_inv_freq = rotary.original_inv_freq.to(torch.bfloat16)
    assert findings(model) == []


def test_frequencies_that_a_type_goes_back_to_may_not() -> None:
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**LONG, rope_parameters=scaled))
    rotary = model.model.rotary_emb
    rotary.original_inv_freq = rotary.original_inv_freq.to(torch.bfloat16)
    (finding,) = findings(model)
    assert finding.at == ("model.rotary_emb.original_inv_freq",)
