"""The repairs of labels and of ties, tried on real models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf
from families import TEXT, build
from torch import nn

import vlmdoctor
from vlmdoctor.finding import Finding

IGNORED = -100


def proven(rule: str, model: nn.Module, batch: Any = None) -> Finding:
    report = vlmdoctor.check(model, batch, select=[rule])
    assert report.crashed == ()
    (finding,) = report.findings
    assert finding.rule == rule
    assert finding.proof is not None and finding.proof.works, report.facts.get("not_proven")
    return finding


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_labels_shifted_back(family: str) -> None:
    model, batch = build(family)
    ahead = batch | {"labels": batch["labels"].roll(-1, 1)}
    ahead["labels"][:, -1] = IGNORED
    before = ahead["labels"].clone()
    assert proven("labels-shifted-twice", model, ahead).proof.tried == "the labels shifted back by 1"
    assert torch.equal(ahead["labels"], before), "the user's own batch stays as it was"


def test_image_tokens_taken_out_of_the_labels() -> None:
    model, batch = build("llava")
    wrong = batch | {"labels": batch["input_ids"].clone()}
    assert "labels" in proven("image-tokens-supervised", model, wrong).proof.tried


def test_padding_taken_out_of_the_labels() -> None:
    model, batch = build("llama")
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][0, -3:] = 0
    model.config.pad_token_id = 3
    batch["input_ids"][0, -3:] = 3
    batch["labels"] = batch["input_ids"].clone()
    finding = proven("padding-supervised", model, batch)
    assert finding.proof.tried == "padding set to -100 in the labels"


def test_the_tie_is_restored() -> None:
    model = hf.LlamaForCausalLM(hf.LlamaConfig(**TEXT, tie_word_embeddings=True))
    own = nn.Parameter(model.lm_head.weight.detach().clone())
    model.lm_head.weight = own
    batch = build("llama")[1]
    assert proven("tie-broken", model, batch).proof.tried == "model.tie_weights() called"
    assert model.lm_head.weight is own, "tried on a copy"
