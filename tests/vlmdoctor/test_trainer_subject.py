"""A Trainer of transformers as what is examined."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

import vlmdoctor
from vlmdoctor.targets.factory import subject_of

ROWS = [{"input_ids": [5 + row, 6, 7, 8 + row, 9, 2], "length": 6} for row in range(8)]


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    ids = torch.tensor([row["input_ids"] for row in rows])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


def trainer(folder: Path, *, kind: type[Trainer] = Trainer, model: Any = None, **options: Any) -> Trainer:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, max_steps=100, report_to=[], use_cpu=True
    )
    options = {"train_dataset": ROWS, "data_collator": collate, **options}
    return kind(LlamaForCausalLM(config) if model is None else model, arguments, **options)


def test_a_healthy_one_is_left_as_it_was(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    state = torch.get_rng_state()
    report = vlmdoctor.check(made)
    assert torch.equal(torch.get_rng_state(), state)
    assert ([f for f in report.findings if f.severity != "info"], report.crashed) == ([], ())
    assert {"no-gradient", "future-leak", "weights-not-moving"} <= set(report.ran)
    assert made.optimizer is None
    assert made.accelerator._dataloaders == []


def test_what_it_holds_is_used(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    subject = subject_of(made, "the test")
    assert subject.model is made.model
    assert subject.training_args is made.args
    assert subject.train_dataset is ROWS
    assert subject.batch["input_ids"].shape == (4, 6)
    assert subject.loss_fn is None
    rates = {group["lr"] for group in subject.optimizer.param_groups}
    assert rates == {made.args.learning_rate}


def test_its_own_loss_is_used(tmp_path: Path) -> None:
    class Doubled(Trainer):
        def compute_loss(self, model: nn.Module, inputs: Any, *arguments: Any, **keywords: Any) -> Any:
            return 2 * super().compute_loss(model, inputs, *arguments, **keywords)

    subject = subject_of(trainer(tmp_path, kind=Doubled), "the test")
    alone = subject.model(**subject.batch).loss
    assert torch.allclose(subject.loss_fn(subject.model, dict(subject.batch)), 2 * alone)


def test_an_optimizer_made_before_the_head_was_replaced(tmp_path: Path) -> None:
    made = trainer(tmp_path)
    made.create_optimizer()
    made.model.lm_head = nn.Linear(32, 64, bias=False)
    report = vlmdoctor.check(made, select=["OPT"])
    assert [finding.rule for finding in report.findings] in (
        ["trainable-not-in-optimizer"],
        ["weights-not-moving"],
    )


def test_from_a_file(tmp_path: Path) -> None:
    from vlmdoctor.targets.resolve import resolve

    made = tmp_path / "mine.py"
    made.write_text(
        "from pathlib import Path\nfrom test_trainer_subject import trainer\n"
        f"made = trainer(Path({str(tmp_path)!r}))\ndef build():\n    return made, None\n",
        encoding="utf-8",
    )
    for name in ("made", "build"):
        assert type(resolve(f"{made}:{name}").subject.model) is LlamaForCausalLM


class TestOneClearSentence:
    def test_no_data(self, tmp_path: Path) -> None:
        with pytest.raises(vlmdoctor.UserError, match="the Trainer has no train_dataset, and no batch"):
            vlmdoctor.check(trainer(tmp_path, train_dataset=None))

    def test_a_collator_that_raises(self, tmp_path: Path) -> None:
        def broken(rows: list[Any]) -> Any:
            raise KeyError("pixel_values")

        with pytest.raises(vlmdoctor.UserError, match=r"of the Trainer raised KeyError: 'pixel_values'"):
            vlmdoctor.check(trainer(tmp_path, data_collator=broken))
