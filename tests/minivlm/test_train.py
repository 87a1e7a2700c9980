"""The training loop: what it reports, what it learns from, and what must not change its numbers."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Recorder, small

from minivlm.callbacks import Callback, ConsoleCallback, TensorBoardCallback
from minivlm.data import Collator, Sample, load_data
from minivlm.errors import UserError
from minivlm.evaluate import exact_matches, undisturbed
from minivlm.factory import load
from minivlm.gradients import STOP_AFTER
from minivlm.run import Summary
from minivlm.train import train


def run(out: Path, **settings: Any) -> tuple[Recorder, Summary]:
    recorder = Recorder()
    return recorder, train(small(out, **settings), [recorder])


def weights(recorder: Recorder) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in recorder.run.model.state_dict().items()}


def test_a_run_reports_logs_and_ends(tmp_path: Path) -> None:
    out, console = tmp_path / "run", io.StringIO()
    recorder = Recorder()
    summary = train(small(out, eval_every=3), [recorder, ConsoleCallback(console)])

    assert recorder.calls == (
        ["begin", "log", "log", "log", "evaluate", "log", "log", "log", "evaluate", "checkpoint", "end"]
    )
    assert [record["step"] for record in recorder.records] == list(range(6))
    first = recorder.records[0]
    assert first["loss"] == pytest.approx(math.log(recorder.run.vocab_size), abs=0.5)
    assert {"epoch", "lr", "grad_norm", "tokens", "tokens_per_s", "memory_mb", "mfu", "seconds"} <= set(first)
    assert first["epoch"] == 1 and first["mfu"] is None and first["supervised_tokens"] > 0

    written = json.loads((out / "summary.json").read_text())
    assert written["finished"] is True and written["steps"] == 6
    assert written["accuracy"] == summary.accuracy == recorder.evaluations[-1]["accuracy"]
    assert written["config"]["batch_size"] == 4
    for name in (
        "accuracy_shuffled",
        "loss",
        "loss_shuffled",
        "loss_blank",
        "samples",
        "accuracy_of",
        "tokens_per_s",
        "parameters",
    ):
        assert written[name] is not None, name
    assert written["accuracy/left"] is not None and written["accuracy_shuffled/left"] is not None

    lines = console.getvalue().splitlines()
    assert any(line.startswith("[trainable]  vision_encoder") for line in lines)
    logged = [line for line in lines if line.startswith("[Train Epoch 1] step: 0, loss: 6.")]
    assert len(logged) == 1
    assert all(part in logged[0] for part in (", lr: 1.0e-03, grad_norm: ", ", tokens/s: ", ", mem: "))


def test_the_checkpoint_is_a_model_that_answers(tmp_path: Path) -> None:
    recorder, _ = run(tmp_path / "run")
    model, processor = load(tmp_path / "run" / "checkpoint")
    assert all(torch.equal(value, weights(recorder)[name]) for name, value in model.state_dict().items())
    image = load_data("digits", "test")[0].images[0]
    inputs = processor.ask("what digit is on the left?", [image])
    assert model.eval().generate(**inputs, max_new_tokens=3).shape[1] > inputs["input_ids"].shape[1]


def test_looking_at_the_run_does_not_change_it(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "a", eval_samples=0, log_every=1)
    watched, _ = run(tmp_path / "b", eval_every=1, save_every=2)
    assert watched.calls.count("evaluate") == 6
    assert watched.losses == plain.losses
    assert all(torch.equal(value, weights(watched)[name]) for name, value in weights(plain).items())


def test_a_failing_callback_is_dropped_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Callback):
        def on_log(self, run: Any, record: Any) -> None:
            raise ValueError("out of ink")

    recorder = Recorder()
    train(small(tmp_path / "run"), [Failing(), recorder])
    assert recorder.calls[-1] == "end" and len(recorder.records) == 6
    assert [r.getMessage() for r in caplog.records].count(
        "Failing.on_log raised ValueError: out of ink; the run goes on without it."
    ) == 1


@pytest.mark.parametrize("data", ["digits", "emoji"])
def test_accumulation_gives_the_losses_of_the_whole_batch(tmp_path: Path, data: str) -> None:
    whole, _ = run(tmp_path / "whole", batch_size=8, data=data, eval_samples=0)
    parts, _ = run(tmp_path / "parts", batch_size=2, accumulate=4, data=data, eval_samples=0)
    assert parts.losses == pytest.approx(whole.losses, rel=2e-4)
    assert [r["grad_norm"] for r in parts.records] == pytest.approx(
        [r["grad_norm"] for r in whole.records], rel=1e-3
    )
    assert [r["tokens"] for r in parts.records] == [r["tokens"] for r in whole.records]


@pytest.mark.parametrize(
    "settings",
    [
        {"images": "blank"},
        {"images": "shuffled"},
        {"padding_side": "left"},
        {"packing": True, "max_length": 128},
        {"precision": "bf16"},
        {"workers": 1},
        {"epochs": 0.0005, "steps": None},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_option_trains(tmp_path: Path, settings: dict[str, Any]) -> None:
    recorder, _ = run(tmp_path / "run", **{"steps": 4, **settings})
    assert recorder.losses[-1] < recorder.losses[0]


def test_packed_padded_and_recomputed_runs_learn_the_same(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "plain", eval_samples=0)
    for settings in (
        {"packing": True, "max_length": 128},
        {"padding_side": "left"},
        {"gradient_checkpointing": True},
    ):
        other, _ = run(tmp_path / next(iter(settings)), eval_samples=0, **settings)
        assert other.losses == pytest.approx(plain.losses, rel=1e-3), settings


def test_workers_see_the_same_samples(tmp_path: Path) -> None:
    alone, _ = run(tmp_path / "alone", eval_samples=0)
    helped, _ = run(tmp_path / "helped", eval_samples=0, workers=2)
    assert helped.losses == alone.losses


def test_steps_without_a_finite_gradient_are_skipped_and_end_the_run_when_they_go_on(tmp_path: Path) -> None:
    class Poison(Recorder):
        def __init__(self, bad_steps: range) -> None:
            super().__init__()
            self.bad_steps = bad_steps
            self.weights: list[torch.Tensor] = []

        def on_train_begin(self, run: Any) -> None:
            super().on_train_begin(run)
            self.weight = run.model.model.vision_proj.layers[0].weight
            self.weight.register_hook(lambda g: g * (math.nan if run.step in self.bad_steps else 1))

        def on_log(self, run: Any, record: Any) -> None:
            super().on_log(run, record)
            self.weights.append(self.weight.detach().clone())

    once = Poison(range(2, 3))
    train(small(tmp_path / "once"), [once])
    assert [record["skipped"] for record in once.records] == [0, 0, 1, 1, 1, 1]
    assert math.isnan(once.records[2]["grad_norm"])
    assert torch.equal(once.weights[2], once.weights[1]) and not torch.equal(once.weights[3], once.weights[2])

    forever = Poison(range(1, 1000))
    with pytest.raises(UserError, match=f"last {STOP_AFTER} steps up to step {STOP_AFTER}"):
        train(small(tmp_path / "forever", steps=100, eval_samples=0), [forever])
    assert forever.calls[-1] == "exception"
    assert torch.equal(forever.weights[0], forever.weights[-1])
    assert all(value.isfinite().all() for value in weights(forever).values())


def test_teacher_forcing_and_generating_agree_on_every_answer(tmp_path: Path) -> None:
    recorder, _ = run(tmp_path / "run", steps=120, batch_size=8, eval_samples=0, log_every=50)
    model, processor = recorder.run.model, recorder.run.processor

    def spoken(sample: Sample) -> list[int]:
        inputs = processor.ask(sample.messages[0]["content"].removeprefix("<image>\n"), sample.images)
        output = model.generate(**inputs, max_new_tokens=24, do_sample=False)
        return output[0, inputs["input_ids"].shape[1] :].tolist()

    with undisturbed(model), torch.no_grad():
        asked = load_data("digits", "test").evaluation_set(40)
        # Every other question gets the model's own answer for the right one, so that both cases occur.
        for i in range(0, len(asked), 2):
            answer = processor.tokenizer.decode(spoken(asked[i]), skip_special_tokens=True)
            message = {"role": "assistant", "content": answer}
            asked[i] = dataclasses.replace(asked[i], messages=(asked[i].messages[0], message))
        batch = Collator(processor, 256)(asked)
        forced = exact_matches(model(**batch).logits, batch["labels"])
        wanted = [[label for label in row if label != -100] for row in batch["labels"].tolist()]
        generated = [spoken(sample) == tokens for sample, tokens in zip(asked, wanted, strict=True)]
    assert forced == generated
    assert sum(forced) >= len(forced) / 2 and not all(forced)


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(tmp_path / "run", tensorboard=True, steps=2)
    events = list((tmp_path / "run" / "tensorboard").glob("events*"))
    assert (
        events and b"train/loss" in events[0].read_bytes() and b"evaluate/accuracy" in events[0].read_bytes()
    )


def test_trackers_that_are_not_installed_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"pip install 'vlmdoctor\[tensorboard\]'"):
        TensorBoardCallback()
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    with pytest.raises(UserError, match=r"pip install 'vlmdoctor\[wandb\]'"):
        train(small(tmp_path / "run", wandb=True))
    assert not (tmp_path / "run").exists()
