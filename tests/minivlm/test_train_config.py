"""Settings and options: no torch, every field is an option, bad values are one sentence."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from minivlm.errors import UserError
from minivlm.options import config_from, train_options, with_train_options
from minivlm.presets import PRESETS
from minivlm.schedule import warmup_cosine
from minivlm.train_config import FREE_TO_CHANGE, TrainConfig, resumed


def invoke(*arguments: str) -> TrainConfig:
    seen: list[TrainConfig] = []
    app = typer.Typer()

    @app.command()
    @with_train_options
    def command(config: TrainConfig, watch: Annotated[bool, typer.Option()] = True) -> None:
        assert watch is ("--no-watch" not in arguments)
        seen.append(config)

    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return seen[0]


def test_options_import_no_torch() -> None:
    code = "import sys, minivlm.cli; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_options_the_config_is_the_default() -> None:
    assert invoke("--no-watch") == TrainConfig()


def test_every_field_is_an_option() -> None:
    names = [parameter.name for parameter in train_options()]
    assert names == ["run_folder", *(field.name for field in dataclasses.fields(TrainConfig))]
    given = invoke(
        *(
            "--preset",
            "tiny8",
            "--set",
            "hidden_size=32",
            "--set",
            "qk_norm=true",
            "--steps",
            "7",
            "--lr",
            "2e-4",
        ),
        *("--compile", "--no-tf32", "--resume", "runs/x", "--trainable", "projector"),
    )
    assert given == TrainConfig(
        preset="tiny8",
        set=("hidden_size=32", "qk_norm=true"),
        steps=7,
        lr=2e-4,
        compile=True,
        tf32=False,
        resume=True,
        out="runs/x",
        trainable="projector",
    )


def test_a_folder_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="given twice"):
        config_from({"run_folder": "a", "out": "b"})


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stage", ["clip", "align", "sft"])
def test_every_preset_resolves(preset: str, stage: str) -> None:
    config = TrainConfig(preset=preset, stage=stage).resolved()
    needed = (
        "steps",
        "batch_size",
        "accumulate",
        "lr",
        "warmup",
        "clip",
        "trainable",
        "eval_samples",
        "max_length",
    )
    assert all(getattr(config, name) is not None for name in needed)


def test_what_the_user_gives_wins_over_stage_and_preset() -> None:
    config = TrainConfig(stage="clip", batch_size=7, trainable="*vision*").resolved()
    assert (config.batch_size, config.trainable) == (7, "*vision*")
    assert TrainConfig(steps=100, max_steps=20).resolved().planned_steps == 20


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (TrainConfig(preset="tiny9"), "did you mean 'tiny"),
        (TrainConfig(stage="stf"), "--stage is 'stf', which is unknown; did you mean 'sft'"),
        (TrainConfig(precision="half"), "one of auto, fp32, bf16, fp16"),
        (TrainConfig(batch_size=0), "--batch-size is 0; it must be at least 1"),
        (TrainConfig(lr=-1.0), "--lr is -1.0"),
        (TrainConfig(lr=float("nan")), "--lr is nan"),
        (TrainConfig(steps=5, epochs=1.0), "give one of them"),
        (TrainConfig(epochs=0.0), "more than 0"),
        (TrainConfig(resume=True, overwrite=True), "give one of them"),
        (TrainConfig(min_lr_ratio=1.5), "share from 0 to 1"),
        (TrainConfig(stage="clip", lora_rank=4), "--lora-rank"),
    ],
)
def test_bad_values_are_one_sentence(config: TrainConfig, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("(", r"\(")) as caught:
        config.resolved()
    assert "\n" not in str(caught.value)


def test_a_resumed_run_keeps_its_settings() -> None:
    saved = dataclasses.asdict(TrainConfig(preset="tiny8", batch_size=4, out="a", max_steps=3).resolved())
    assert resumed(TrainConfig(resume=True), saved, "a").batch_size == 4
    longer = resumed(TrainConfig(resume=True, steps=9000, log_every=1), saved, "a")
    assert (longer.preset, longer.steps, longer.log_every, longer.max_steps) == ("tiny8", 9000, 1, None)
    assert resumed(TrainConfig(resume=True, preset="tiny8"), saved, "a").preset == "tiny8"
    with pytest.raises(UserError, match="started with --batch-size 4, not 8"):
        resumed(TrainConfig(resume=True, batch_size=8), saved, "a")
    assert set(FREE_TO_CHANGE) <= {field.name for field in dataclasses.fields(TrainConfig)}


def test_the_schedule_rises_then_falls_to_its_floor() -> None:
    shares = [warmup_cosine(step, steps=100, warmup=10, min_ratio=0.1) for step in range(100)]
    assert 0 < shares[0] < 0.1
    assert max(shares) == shares[10] == 1.0
    assert shares[:11] == sorted(shares[:11])
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert shares[-1] == pytest.approx(0.1)
    assert warmup_cosine(0, steps=1, warmup=0, min_ratio=0.1) == 1.0
