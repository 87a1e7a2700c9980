"""Run folders for `report` and `train --resume`: torn, mutated, missing; wrong manifests and states."""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.hostile.harness.bases import RECORDED, RUN
from benchmarks.hostile.harness.mutate import dumped, mutated, value
from benchmarks.hostile.harness.outcome import Outcome
from benchmarks.hostile.harness.texts import TEXTS, as_argument, as_file_name, text, utf8
from benchmarks.hostile.harness.trial import Base, Content, Edit, Fifo, Folder, Link, Sparse, Trial, numbered
from benchmarks.hostile.weights import PICKLE

NAME = "runs"

_FILES = ("run.json", "run.jsonl", "tracks.json", "summary.json")
_LAST = "checkpoints/step-000006"
_PARTS = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
)
_DRAWN = ("loss.png", "grads.png", "report.html", "summary.json", "examples", "examples/*", "attention*")
_FORMATS = ("full", "json", "html", "sarif", "junit", "markdown", "github", "concise")
_MANIFEST = {
    "config.json": {"bytes": 1009, "sha256": "0" * 64},
    "model.safetensors": {"bytes": 1240440, "sha256": "1" * 64},
}


def inputs(seed: int, count: int) -> Iterator[Trial]:
    """Run folders from a seed."""
    return numbered(NAME, _one, seed, count)


def _one(rng: random.Random, index: int) -> Trial:
    return _resumed(rng) if rng.random() < 0.25 else _reported(rng)


def _reported(rng: random.Random) -> Trial:
    folder = "run" if rng.random() < 0.8 else as_file_name(as_argument(rng.choice(TEXTS)))
    files: dict[str, Content] = {f"out/{folder}": Base(RECORDED)}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice((*_FILES, "run.jsonl", "run.json"))
        files[f"out/{folder}/{name}"] = _content(rng, name)
    argv = ["report", f"../out/{folder}", "--output-format", rng.choice(_FORMATS)]
    # Drawing takes a second; most inputs do not reach it or are about what comes before.
    argv.append("--draw" if rng.random() < 0.15 else "--no-draw")
    if rng.random() < 0.2:
        argv += ["--require-accuracy", "0.5"]
    drawn = tuple(f"out/*/{name}" for name in _DRAWN)
    return Trial(
        "a recorded run", tuple(argv), files, {"GITHUB_ACTIONS": "true"}, may_change=(*drawn, "home/*")
    )


def _content(rng: random.Random, name: str) -> Content:
    match rng.randrange(12):
        case 0:
            return None
        case 1:
            return rng.choice(
                (Fifo(), Link("/dev/zero"), Link(name), Folder(), Sparse(1 << 34), Sparse(300_000_000))
            )
        case 2:
            return Edit("bytes", rng.randrange(2**32))
        case 3:
            return Edit("text", rng.randrange(2**32))
        case 4:
            return Edit("lines", rng.randrange(2**32))
        case 5 if name == "run.jsonl":
            return b"\n".join(dumped(rng, _row(rng)) for _ in range(rng.choice((1, 5, 300))))
        case 5:
            return dumped(rng, value(rng))
        case _:
            return Edit("rows" if name == "run.jsonl" else "json", rng.randrange(2**32))


def _row(rng: random.Random) -> object:
    row = {
        "event": rng.choice(("step", "evaluate", "nonfinite", "finding", "end", text(rng), None)),
        "step": rng.choice((0, 1, -1, 10**9, 10**30, 1.5, "1", None, True, float("nan"))),
        "loss": rng.choice((1.0, float("nan"), float("inf"), 1e308, "1", None, 10**400)),
        "message": text(rng),
        "rule": rng.choice(("image-ignored", text(rng))),
        "severity": rng.choice(("error", "warning", text(rng), None)),
        "at": text(rng),
        f"grad_norm/{text(rng)}": rng.choice((1.0, -1.0, "x")),
        f"accuracy/{text(rng)}": 0.5,
    }
    return row if rng.random() < 0.7 else mutated(rng, row, 2)


def _resumed(rng: random.Random) -> Trial:
    files: dict[str, Content] = {"out/run": Base(RUN), "bait/secret": b"secret"}
    last = f"out/run/{_LAST}"
    match rng.randrange(8):
        case 0 | 1:
            # Well formed, and the manifest agrees: what is wrong is what it says.
            files[f"{last}/training_state.pt"] = Edit("state", rng.randrange(2**32))
            files[f"{last}/manifest.json"] = Edit("manifest", 0)
        case 2 if rng.random() < 0.3:
            files[f"{last}/training_state.pt"] = PICKLE
            files[f"{last}/manifest.json"] = Edit("manifest", 0)
        case 2:
            files[f"{last}/training_state.pt"] = Edit("bytes", rng.randrange(2**32))
            files[f"{last}/manifest.json"] = Edit("manifest", 0)
        case 3:
            manifest = mutated(rng, _MANIFEST, rng.choice((1, 2)))
            outside = rng.choice(
                ("../../../../bait/secret", "/etc/passwd", "/dev/zero", "../../run.json", text(rng))
            )
            if isinstance(manifest, dict) and rng.random() < 0.6:
                manifest[outside] = {"bytes": 6, "sha256": "0" * 64}
            files[f"{last}/manifest.json"] = dumped(rng, manifest)
        case 4:
            part = rng.choice(_PARTS)
            files[f"{last}/{part}"] = Edit(
                "json" if part.endswith("json") else "header", rng.randrange(2**32)
            )
            files[f"{last}/manifest.json"] = Edit("manifest", 0)
        case 5:
            name = rng.choice(("step-000006", "step-9" * 9, f"step-{'9' * 40}", "step-٣", "step-000007"))
            files[f"out/run/checkpoints/{name}/{rng.choice(('manifest.json', 'x'))}"] = utf8(text(rng))
        case 6:
            odd = (Fifo(), Link("/dev/zero"), Folder(), Link("training_state.pt"), b"")
            files[f"{last}/{rng.choice(('training_state.pt', 'manifest.json'))}"] = rng.choice(odd)
        case _:
            name = rng.choice(("run.json", "run.jsonl", "summary.json", "tracks.json"))
            files[f"out/run/{name}"] = _content(rng, name)
    argv = ["train", "../out/run", "--resume", "--max-steps", "7", "--threads", "1", "--no-preflight"]
    return Trial("a run to go on with", tuple(argv), files, may_change=("out/run/*", "home/*"), seconds=40)


def judge(trial: Trial, outcome: Outcome) -> Iterator[str]:
    """A run that could not go on still has its first checkpoint."""
    if trial.argv[0] != "train" or outcome.status == 0:
        return
    lost = [path for path, how in outcome.changed if how == "removed" and "step-000003/" in path]
    if lost:
        yield f"lost: {lost[0]} of a checkpoint that was whole"
