"""Writes run folders as the recorder does, so that plots and reports are tested without training."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

LAYERS = {"vision": ("model.vision_encoder.layers", 2), "language": ("model.language_model.layers", 4)}
PARAMETERS = {
    "vision": ("model.vision_encoder.stem.0.weight", (64, 48)),
    "projector": ("model.vision_proj.0.weight", (64, 64)),
    "language": ("model.language_model.embed_tokens.weight", (680, 64)),
}
CONFIG = {
    "preset": "tiny",
    "data": "digits",
    "stage": "sft",
    "batch_size": 32,
    "lr": 1e-3,
    "clip": 1.0,
    "seed": 0,
    "out": "runs/tiny-digits",
}
KINDS = ("left", "right", "read both", "sum", "colour", "caption")


def parameters(frozen: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Parameters of a small model, one big one for each role and one for each layer."""
    listed = [(role, name, "", None, shape) for role, (name, shape) in PARAMETERS.items()]
    for role, (stack, count) in LAYERS.items():
        listed += [
            (role, f"{stack}.{i}.mlp.up_proj.weight", f"{stack}.{i}", i, (176, 64)) for i in range(count)
        ]
    return [
        {
            "name": name,
            "role": role,
            "layer": layer,
            "depth": depth,
            "shape": list(shape),
            "dtype": "float32",
            "requires_grad": role not in frozen,
            "wanted": True,
            "in_optimizer": 1,
            "lr": 1e-3,
        }
        for role, name, layer, depth, shape in listed
    ]


def step_row(step: int, total: int, rng: random.Random, every: int, breakthrough: float) -> dict[str, Any]:
    """One optimizer step of a run that plateaus and then finds the image."""
    at = step / total
    fall = 5.2 * math.exp(-at * 45)
    see = 1.2 / (1 + math.exp((at - breakthrough) * 24))
    loss = (0.09 + fall + see + 0.05 * (1 - at)) * math.exp(rng.gauss(0, 0.05 + 0.14 * at))
    row: dict[str, Any] = {
        "event": "step",
        "step": step,
        "epoch": step // 360 + 1,
        "loss": loss,
        "lr": 1e-3 * min(1.0, (step + 1) / (0.04 * total)) * (0.55 + 0.45 * math.cos(math.pi * at)),
        "tokens_per_s": 18_000 * rng.uniform(0.9, 1.05),
        "memory_mb": 412.0,
        "seconds": step * 0.058,
        "supervised_tokens": 214,
    }
    if every and step % every == 0:
        burst = 1 + 3.2 * math.exp(-(((at - breakthrough) / 0.08) ** 2))
        scale = {"vision": 0.16 * burst**1.6, "projector": 0.1 * burst, "language": 0.55 * burst}
        squares = 0.0
        for role, size in scale.items():
            norm = size * math.exp(rng.gauss(0, 0.25)) * (1 + 6 * math.exp(-at * 60))
            squares += norm * norm
            row[f"grad_norm/{role}"] = norm
            row[f"update_ratio/{role}"] = (row["lr"] + 1e-6) * math.exp(rng.gauss(0, 0.2)) * (2.2 - size / 2)
            stack, count = LAYERS.get(role, ("", 0))
            for i in range(count):
                row[f"grad_norm/layer/{stack}.{i}"] = norm * 0.6 * 0.75**i * math.exp(rng.gauss(0, 0.15))
        row["grad_norm"] = math.sqrt(squares)
        row["grad_norm_after"] = min(1.0, row["grad_norm"])
    return row


def evaluation_row(step: int, total: int, breakthrough: float) -> dict[str, Any]:
    """An evaluation after `step`, in which looking starts to pay at the breakthrough."""
    seen = 1 / (1 + math.exp(-(step / total - breakthrough) * 20))
    row: dict[str, Any] = {
        "event": "evaluate",
        "step": step,
        "samples": 400,
        "accuracy": 0.1 + 0.856 * seen,
        "accuracy_shuffled": 0.1 + 0.012 * math.sin(step),
        "loss": 1.32 - 1.16 * seen,
        "loss_shuffled": 1.35 + 2.1 * seen,
        "loss_blank": 1.34 + 1.3 * seen,
    }
    for place, kind in enumerate(KINDS):
        row[f"accuracy/{kind}"] = min(1.0, 0.1 + seen * (0.9 - 0.09 * place * (place > 2)))
        row[f"accuracy_shuffled/{kind}"] = 0.05 + 0.03 * place
    return row


def write_run(
    folder: Path,
    *,
    steps: int = 2000,
    total: int | None = None,
    every: int = 10,
    eval_every: int = 250,
    breakthrough: float = 0.42,
    findings: tuple[dict[str, Any], ...] = (),
    frozen: tuple[str, ...] = (),
    finished: bool = True,
    change: Any = None,
) -> Path:
    """Writes a run folder; `change(row)` may spoil each row, or drop it by returning None."""
    folder.mkdir(parents=True, exist_ok=True)
    total = total or steps
    rng = random.Random(7)
    rows = []
    for step in range(steps):
        rows.append(step_row(step, total, rng, every, breakthrough))
        if eval_every and (step + 1) % eval_every == 0:
            rows.append(evaluation_row(step, total, breakthrough))
    rows += [{"event": "finding", **finding} for finding in findings]
    rows.append({"event": "end", "step": steps - 1, "finished": finished, "seconds": steps * 0.058})
    if change is not None:
        rows = [changed for row in rows if (changed := change(row)) is not None]
    (folder / "run.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    info = {
        "schema_version": 1,
        "created": "2026-03-01T12:00:00+00:00",
        "target": "minivlm:tiny",
        "command": "vlmdoctor train --watch-grads",
        "config": {**CONFIG, "steps": total},
        "total_steps": total,
        "vocab_size": 680,
        "resumed": False,
        "parameters": parameters(frozen),
    }
    (folder / "run.json").write_text(json.dumps(info))
    evaluations = [row for row in rows if row["event"] == "evaluate"]
    summary: dict[str, Any] = {"steps": steps, "seconds": steps * 0.058, "device": "cpu"}
    if evaluations:
        summary |= {key: value for key, value in evaluations[-1].items() if key not in ("event", "step")}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


PLATEAU = {
    "step": 410,
    "rule": "image-ignored",
    "code": "LOSS104",
    "severity": "warning",
    "message": "the answers are the same when the images are exchanged",
    "at": "model.vision_proj",
    "cause": "the loss falls by the answers' wording alone",
    "fix": "train longer, or raise --lr-projector",
}
SPIKE = {
    "step": 1210,
    "rule": "gradient-explosion",
    "code": "GRAD204",
    "severity": "error",
    "message": "the gradient norm rose 140-fold within 20 steps",
    "at": "model.language_model.layers.3",
    "cause": "the learning rate is too high for the last layers",
    "fix": "clip at 1.0 or halve --lr",
}
