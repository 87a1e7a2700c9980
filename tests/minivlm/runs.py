"""Runs small enough for tests: a few thousand parameters, a few samples, a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minivlm.callbacks import Callback
from minivlm.train_config import TrainConfig

SMALL = (
    "hidden_size=16",
    "intermediate_size=32",
    "num_hidden_layers=1",
    "num_attention_heads=2",
    "vision_hidden_size=16",
    "vision_intermediate_size=16",
    "vision_num_hidden_layers=1",
    "vision_num_attention_heads=2",
)


def small(out: Path, **settings: Any) -> TrainConfig:
    """A run of six steps that logs every one and evaluates and saves at the end."""
    values: dict[str, Any] = {
        "set": SMALL,
        "steps": 6,
        "batch_size": 4,
        "warmup": 2,
        "lr": 3e-3,
        "log_every": 1,
        "eval_every": 0,
        "eval_samples": 12,
        "save_every": 0,
        "threads": 1,
        "device": "cpu",
    }
    return TrainConfig(**{**values, "out": str(out), **settings})


class Recorder(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.records: list[dict[str, Any]] = []
        self.evaluations: list[dict[str, Any]] = []
        self.run: Any = None
        self.error: BaseException | None = None

    @property
    def losses(self) -> list[float]:
        return [record["loss"] for record in self.records]

    def on_train_begin(self, run: Any) -> None:
        self.run = run
        self.calls.append("begin")

    def on_log(self, run: Any, record: Any) -> None:
        self.records.append(dict(record))
        self.calls.append("log")

    def on_evaluate(self, run: Any, record: Any) -> None:
        self.evaluations.append(dict(record))
        self.calls.append("evaluate")

    def on_checkpoint(self, run: Any, path: Path) -> None:
        self.calls.append("checkpoint")

    def on_train_end(self, run: Any, summary: Any) -> None:
        self.calls.append("end")

    def on_exception(self, run: Any, error: BaseException) -> None:
        self.error = error
        self.calls.append("exception")
