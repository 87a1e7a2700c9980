"""The callback for transformers' Trainer, and the pytest fixture."""

from __future__ import annotations

import importlib
import logging
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from test_lightning_module import Lit
from test_trainer_subject import trainer
from tiny_vlm import TinyVLM, adamw, batch

import vlmdoctor as package
from vlmdoctor.integrations.transformers import VLMDoctorCallback

pytest_plugins = ["vlmdoctor.integrations.pytest"]


def trained(folder: Path, callback: VLMDoctorCallback, steps: int = 6, **options: Any) -> Any:
    made = trainer(folder / "trainer", callbacks=[callback], **options)
    made.args.max_steps, made.args.logging_steps, made.args.disable_tqdm = steps, 2, True
    made.args.save_strategy = "no"
    made.train()
    return made


class TestCallback:
    def test_a_run_is_watched_and_recorded(self, tmp_path: Path) -> None:
        callback = VLMDoctorCallback(tmp_path / "run")
        made = trained(tmp_path, callback)
        assert callback.watcher.steps == made.state.global_step == 6
        _, steps = callback.watcher.evidence()
        assert all(step.loss is not None for step in steps.steps)
        assert steps.finished
        assert [f for f in callback.report().findings if f.severity == "error"] == []
        assert (tmp_path / "run" / "run.jsonl").exists()
        assert not any(module._forward_hooks for module in made.model.modules())

    def test_a_fault_is_logged_and_ends_the_run_when_asked(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        def nothing_supervised(rows: list[Any]) -> Any:
            from test_trainer_subject import collate

            given = collate(rows)
            return {**given, "labels": given["labels"].fill_(-100)}

        callback = VLMDoctorCallback(every=1, stop_on="error")
        with caplog.at_level(logging.INFO, logger="vlmdoctor"):
            made = trained(tmp_path, callback, 40, data_collator=nothing_supervised)
        assert any(finding.severity == "error" for finding in callback.report().findings)
        assert any(record.levelno == logging.ERROR for record in caplog.records)
        assert made.state.global_step < 40

    def test_bad_use(self) -> None:
        with pytest.raises(package.UserError, match="stop_on is 'never'"):
            VLMDoctorCallback(stop_on="never")
        with pytest.raises(package.UserError, match="no report before training"):
            VLMDoctorCallback().report()


class TestLightning:
    @pytest.fixture
    def callback(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        """The callback with `object` as Lightning's base class."""
        library = ModuleType("lightning.pytorch")
        library.Callback = object
        monkeypatch.setitem(sys.modules, "lightning", ModuleType("lightning"))
        monkeypatch.setitem(sys.modules, "lightning.pytorch", library)
        monkeypatch.delitem(sys.modules, "vlmdoctor.integrations.lightning", raising=False)
        yield importlib.import_module("vlmdoctor.integrations.lightning").VLMDoctorCallback(stop_on="error")
        sys.modules.pop("vlmdoctor.integrations.lightning")

    @pytest.mark.parametrize("way", ["scatter", "data"])
    def test_a_run_is_watched(self, callback: Any, way: str) -> None:
        module = Lit(TinyVLM(way=way))
        run = SimpleNamespace(
            optimizers=[adamw(module)],
            estimated_stepping_batches=12,
            global_step=0,
            accumulate_grad_batches=1,
            should_stop=False,
        )
        callback.on_train_start(run, module)
        for step in range(12):
            loss = module.model(**batch(step)).loss
            loss.backward()
            run.optimizers[0].step()
            run.optimizers[0].zero_grad()
            run.global_step += 1
            callback.on_train_batch_end(run, module, {"loss": loss.detach()}, None, step)
        callback.on_train_end(run, module)
        found = [finding.rule for finding in callback.report().findings]
        assert found == ([] if way == "scatter" else ["no-gradient"])
        assert run.should_stop == (way == "data")
        assert callback.watcher.steps == 12


class TestFixture:
    def test_a_healthy_model(self, vlmdoctor: Any) -> None:
        model = TinyVLM()
        assert vlmdoctor(model, batch(0), optimizer=adamw(model)).findings == ()

    def test_a_fault_fails_the_test(self, vlmdoctor: Any) -> None:
        with pytest.raises(pytest.fail.Exception, match="no-gradient"):
            vlmdoctor(TinyVLM(way="data"), batch(0), select=["no-gradient"])
