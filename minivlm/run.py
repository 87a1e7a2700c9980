"""A training run's state while it is under way, and what is left of it at the end."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivlm.checkpoint import FOLDER, LATEST, write_atomically

if TYPE_CHECKING:
    import torch
    from torch import nn

    from minivlm.train_config import TrainConfig

SUMMARY = "summary.json"


@dataclass
class Run:
    """What callbacks see.

    Attributes:
        model: The model that learns, without wrappers; in stage clip the encoder with its contrastive head.
        optimizer: Its optimizer.
        scaler: The gradient scaler where the precision needs one.
        config: The resolved settings.
        model_config: The MiniVLMConfig.
        processor: Tokenizer, chat template and image processor.
        out: The run folder.
        device: Where the model is.
        is_main: Whether this process prints, evaluates and saves; only its callbacks are called.
        trainable_patterns: Patterns of the names of the parameters that are meant to learn.
        vocab_size: How many answers a prediction chooses among: an untrained model's loss is about its
            logarithm.
        total_steps: Where the run ends.
        step: The optimizer step under way, counted from 0; between steps, the next one.
        first_step: Where this process began; more than 0 in a resumed run.
        tokens: Tokens seen so far, padding not counted.
        seconds: How long training has taken so far, over all resumes.
        evaluation: The last evaluation's record.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    config: TrainConfig
    model_config: Any
    processor: Any
    out: Path
    device: torch.device
    is_main: bool
    trainable_patterns: tuple[str, ...]
    vocab_size: int
    total_steps: int
    step: int = 0
    first_step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    evaluation: dict[str, Any] = field(default_factory=dict)

    @property
    def resumed(self) -> bool:
        """Whether this run continues an earlier one."""
        return self.first_step > 0


@dataclass(frozen=True)
class Summary:
    """What a run came to; `summary.json` in its folder.

    Attributes:
        finished: Whether it came to its planned end.
        steps: Optimizer steps taken.
        seconds: Time spent, over all resumes.
        tokens: Tokens seen, padding not counted.
        tokens_per_s: The mean over the run, evaluations included.
        parameters: Of the whole model.
        trainable_parameters: Those that learned.
        evaluation: The last one's record: accuracy, accuracy_shuffled, loss, loss_shuffled, loss_blank,
            samples, and the accuracies by kind.
        config: The settings.
    """

    finished: bool
    steps: int
    seconds: float
    tokens: int
    tokens_per_s: float
    parameters: int
    trainable_parameters: int
    evaluation: dict[str, Any]
    config: dict[str, Any]

    @classmethod
    def of(cls, run: Run, finished: bool) -> Summary:
        """The summary of a run as it stands."""
        parameters = list(run.model.parameters())
        return cls(
            finished=finished,
            steps=run.step,
            seconds=round(run.seconds, 3),
            tokens=run.tokens,
            tokens_per_s=round(run.tokens / run.seconds, 1) if run.seconds else 0.0,
            parameters=sum(p.numel() for p in parameters),
            trainable_parameters=sum(p.numel() for p in parameters if p.requires_grad),
            evaluation=dict(run.evaluation),
            config=dataclasses.asdict(run.config),
        )

    @property
    def accuracy(self) -> float | None:
        """Share of exactly right answers on unseen images; None where nothing was evaluated."""
        return self.evaluation.get("accuracy")

    def to_dict(self) -> dict[str, Any]:
        """As in `summary.json`: flat but for `config`, and null where a number is missing or not finite."""
        names = (
            "accuracy",
            "accuracy_shuffled",
            "loss",
            "loss_shuffled",
            "loss_blank",
            "samples",
            "accuracy_of",
        )
        evaluation = {name: self.evaluation.get(name) for name in names}
        evaluation |= {name: value for name, value in self.evaluation.items() if name != "step"}
        rest = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "evaluation"}
        return {name: _finite(value) for name, value in {**evaluation, **rest}.items()}

    def write(self, folder: Path) -> None:
        """Writes `summary.json`."""
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomically(folder / SUMMARY, text + "\n")


def has_run(folder: Path) -> bool:
    """Whether a run folder was used before."""
    return (folder / SUMMARY).exists() or (folder / FOLDER).exists() or (folder / LATEST).is_symlink()


def is_finished(folder: Path) -> bool:
    """Whether the run in a folder came to its planned end."""
    try:
        return bool(json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["finished"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
