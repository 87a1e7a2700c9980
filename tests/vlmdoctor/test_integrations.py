"""The callback for transformers' Trainer, and the pytest fixture."""

from __future__ import annotations

import importlib
import subprocess
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

HERE = Path(__file__).parent
RAISES = """
import sys
from pathlib import Path

sys.path.insert(0, {here!r})
from test_integrations import VLMDoctorCallback, trained
from test_trainer_subject import collate

def third(rows, seen=[]):
    seen.append(1)
    if len(seen) > 2:
        raise KeyError("image")
    return collate(rows)

trained(Path({folder!r}), VLMDoctorCallback(), 6, data_collator=third)
"""
pytest_plugins = ["pytester", "vlmdoctor.integrations.pytest"]


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

    def test_a_fault_is_printed_as_a_card_and_ends_the_run_when_asked(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def nothing_supervised(rows: list[Any]) -> Any:
            from test_trainer_subject import collate

            given = collate(rows)
            return {**given, "labels": given["labels"].fill_(-100)}

        callback = VLMDoctorCallback(every=1, stop_on="error")
        made = trained(tmp_path, callback, 40, data_collator=nothing_supervised)
        assert any(finding.severity == "error" for finding in callback.report().findings)
        assert made.state.global_step < 40
        lines = capsys.readouterr().err.splitlines()
        ours = [line for line in lines if line.startswith("vlmdoctor | ")]
        assert sum("✗ error" in line for line in ours) == 1
        assert any(line.startswith("vlmdoctor |   more    vlmdoctor rule ") for line in ours)
        assert "vlmdoctor | the training is ended, since stop_on is 'error'" in ours
        folder = tmp_path / "trainer" / "vlmdoctor"
        assert ours[-1].startswith("vlmdoctor | ✗ 1 error, ")
        assert ours[-1].endswith(f" · report {folder / 'report.html'}")
        assert (folder / "report.html").is_file()

    def test_the_last_line_is_there_without_findings_and_without_a_folder(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        trained(tmp_path, VLMDoctorCallback(out=False), 2)
        lines = capsys.readouterr().err.splitlines()
        assert sum(line.startswith("vlmdoctor | ✓ 0 errors, 0 warnings · ") for line in lines) == 1
        assert not (tmp_path / "trainer" / "vlmdoctor").exists()

    def test_a_folder_that_nobody_asked_for_ends_no_run(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "trainer").mkdir()
        (tmp_path / "trainer" / "vlmdoctor").write_text("no folder")
        made = trained(tmp_path, VLMDoctorCallback(), 2)
        assert made.state.global_step == 2
        assert "vlmdoctor | nothing is recorded: " in capsys.readouterr().err

    def test_a_run_that_raises_has_its_last_line_too(self, tmp_path: Path) -> None:
        script = tmp_path / "script.py"
        script.write_text(RAISES.format(here=str(HERE), folder=str(tmp_path)))
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
        assert done.returncode == 1
        assert "KeyError: 'image'" in done.stderr
        ours = [line for line in done.stderr.splitlines() if line.startswith("vlmdoctor | ")]
        assert ours[-1].endswith(f" · report {tmp_path / 'trainer' / 'vlmdoctor' / 'report.html'}")

    def test_bad_use(self) -> None:
        with pytest.raises(package.UserError, match="stop_on is 'never'"):
            VLMDoctorCallback(stop_on="never")
        with pytest.raises(package.UserError, match="no report before training"):
            VLMDoctorCallback().report()
        with pytest.raises(package.UserError, match="out is True"):
            VLMDoctorCallback(out=True)


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

    @pytest.mark.parametrize("ci", [False, True])
    def test_a_failure_is_the_card_once(
        self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, ci: bool
    ) -> None:
        # There pytest prints a failure's whole text in its summary.
        for name in ("CI", "BUILD_NUMBER"):
            monkeypatch.delenv(name, raising=False)
        if ci:
            monkeypatch.setenv("CI", "true")
        pytester.makepyfile(
            f"""
            import sys
            sys.path.insert(0, {str(HERE)!r})
            from tiny_vlm import TinyVLM, batch
            pytest_plugins = ["vlmdoctor.integrations.pytest"]

            def test_it(vlmdoctor):
                vlmdoctor(TinyVLM(way="data"), batch(0), select=["no-gradient"])
            """
        )
        done = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-q")
        text = done.stdout.str()
        done.assert_outcomes(failed=1)
        assert text.count("more    vlmdoctor rule GRAD201") == 1
        assert "✗ 1 error, 0 warnings · 1 check" in text
        assert "Traceback" not in text and "FindingsError" not in text
