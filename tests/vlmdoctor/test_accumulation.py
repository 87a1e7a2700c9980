"""The loss and the number of labels that transformers' Trainer passes: on families and on wrappers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import test_traps_transformers as traps
import torch
import transformers as hf
from torch import nn

import vlmdoctor
from vlmdoctor.report import Report


def examined(model: nn.Module, batch: Any, **arguments: Any) -> Report:
    report = vlmdoctor.check(
        model,
        batch,
        training_args={"gradient_accumulation_steps": 8} | arguments,
        select=["accumulation-not-divided"],
    )
    assert report.crashed == ()
    return report


@pytest.mark.parametrize("family", [*families.DECODERS, *families.VLMS])
def test_families_divide(family: str) -> None:
    report = examined(*families.build(family))
    assert report.findings == () and report.ran == ("accumulation-not-divided",)


@pytest.mark.parametrize(
    ("build", "data"), [(traps.qwen, traps.qwen_batch), (traps.mllama, traps.mllama_batch)]
)
def test_more_families_divide(build: Any, data: Any) -> None:
    assert examined(build(), data(0)).findings == ()


class Wrapper(nn.Module):
    """A user's own model around a decoder, with the `**kwargs` that Trainer looks for."""

    def __init__(self, *, swallow: bool) -> None:
        super().__init__()
        self.decoder = families.build("llama")[0]
        self.swallow = swallow

    def forward(self, input_ids: Any, attention_mask: Any, labels: Any, **more: Any) -> Any:
        return self.decoder(
            input_ids, attention_mask=attention_mask, labels=labels, **({} if self.swallow else more)
        )


class Strict(Wrapper):
    """Passes what it gets on to something that takes nothing more."""

    def forward(self, input_ids: Any, attention_mask: Any, labels: Any, **more: Any) -> Any:
        def loss(ids: Any, mask: Any, wanted: Any) -> Any:
            return self.decoder(ids, attention_mask=mask, labels=wanted)

        return loss(input_ids, attention_mask, labels, **more)


def test_a_wrapper_that_swallows_the_number() -> None:
    batch = families.build("llama")[1]
    (finding,) = examined(Wrapper(swallow=True), batch).findings
    assert finding.message == "the loss ignores num_items_in_batch: gradients will be 8 times too large"
    assert finding.severity == "warning"
    assert examined(Wrapper(swallow=False), batch).findings == ()
    assert examined(Wrapper(swallow=True), batch, gradient_accumulation_steps=1).findings == ()


def test_the_trainers_own_word_is_heeded() -> None:
    model = Wrapper(swallow=True)
    model.accepts_loss_kwargs = False
    assert examined(model, families.build("llama")[1]).findings == ()


def test_an_error_where_the_trainer_will_run(tmp_path: Path) -> None:
    arguments = hf.TrainingArguments(str(tmp_path), gradient_accumulation_steps=4, report_to=[])
    batch = families.build("llama")[1]
    for model, says in (
        (Wrapper(swallow=True), "4 times too large"),
        (Strict(swallow=True), "Strict raises when the Trainer passes num_items_in_batch"),
    ):
        report = vlmdoctor.check(model, batch, training_args=arguments, select=["accumulation-not-divided"])
        (finding,) = report.findings
        assert finding.severity == "error" and says in finding.message


def test_the_model_is_left_as_it_was() -> None:
    model, batch = families.build("llama")
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    examined(model, batch)
    assert model.training and torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
