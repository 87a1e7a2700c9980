"""Stage clip: the encoder learns by itself, and its run is where the next one starts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from runs import Recorder, small

from minivlm.contrastive import PADDING, ContrastiveModel
from minivlm.factory import load
from minivlm.train import train


def test_the_encoder_learns_names_and_the_next_run_starts_from_it(tmp_path: Path) -> None:
    clip = Recorder()
    summary = train(
        small(
            tmp_path / "clip", stage="clip", data="emoji", batch_size=32, steps=40, lr=1e-2, eval_samples=40
        ),
        [clip],
    )
    assert clip.losses[0] == pytest.approx(math.log(clip.run.vocab_size), abs=0.7)
    assert sum(clip.losses[-5:]) < sum(clip.losses[:5]) - 0.3
    assert {name.split(".")[0] for name, _ in clip.run.model.named_parameters()} == {
        "vision_encoder",
        "contrastive_head",
    }
    assert {"accuracy", "accuracy_shuffled", "loss", "loss_shuffled", "loss_blank", "samples"} <= set(
        summary.evaluation
    )

    encoder = clip.run.model.vision_encoder.state_dict()
    saved, _ = load(tmp_path / "clip" / "checkpoint")
    assert all(
        torch.equal(value, encoder[name]) for name, value in saved.model.vision_encoder.state_dict().items()
    )

    answers = Recorder()
    start = {"set": (), "init_from": str(tmp_path / "clip"), "trainable": "frozen-vision", "data": "emoji"}
    train(small(tmp_path / "sft", **start), [answers])
    kept = answers.run.model.model.vision_encoder.state_dict()
    assert all(torch.equal(value, encoder[name]) for name, value in kept.items())


def test_pairs_that_say_the_same_are_not_pulled_apart() -> None:
    torch.manual_seed(0)
    model = ContrastiveModel(torch.nn.Identity(), vision_width=4, vocab_size=9)
    features = torch.randn(2, 3, 4)
    text_ids = torch.tensor([[5, PADDING], [7, 8]])
    twice = {"pixel_values": features.repeat(2, 1, 1), "text_ids": text_ids.repeat(2, 1)}
    told = model(**twice, labels=torch.tensor([0, 1, 0, 1])).loss
    once = model(features, text_ids, torch.tensor([0, 1])).loss
    # Each right answer is there twice: choosing among them costs ln 2 and nothing else.
    assert told.item() == pytest.approx(once.item() + math.log(2), abs=1e-5)
    untold = model(**twice, labels=torch.arange(4)).loss
    assert untold.item() == pytest.approx(told.item(), abs=1e-5)
