"""The torch-free snapshot of a machine, read from folders of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmdoctor.cli.check_env import statement
from vlmdoctor.evidence.environment import Environment, snapshot
from vlmdoctor.rules.env.gpu_hidden_by_environment import gpu_hidden_by_environment


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with two GPUs and a torch built for CUDA 13.0."""
    for bus in ("0000:17:00.0", "0000:65:00.0"):
        folder = tmp_path / "proc/driver/nvidia/gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text("Model: \t\t NVIDIA L40S\nIRQ:   \t\t 52\n")
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:18:30 UTC 2025\n"
    )
    site = tmp_path / "site"
    (site / "torch").mkdir(parents=True)
    (site / "torch/version.py").write_text(
        "from typing import Optional\n"
        "__version__ = '2.13.0+cu130'\ndebug = False\ncuda: Optional[str] = '13.0'\n"
    )
    (site / "torch-2.13.0.dist-info").mkdir()
    (site / "torch-2.13.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: torch\nVersion: 2.13.0\n"
    )
    return tmp_path


def look_at(machine: Path, **environ: str) -> Environment:
    return snapshot(machine, environ, [str(machine / "site")])


def test_gpus_driver_and_build_are_read_from_files(machine: Path) -> None:
    seen = look_at(machine)
    assert seen.gpus == ("NVIDIA L40S", "NVIDIA L40S")
    assert seen.driver == "580.65.06"
    assert seen.packages == {"torch": "2.13.0+cu130"}
    assert seen.torch_cuda == "13.0"


def test_device_files_count_where_the_driver_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (tmp_path / "dev" / name).touch()
    assert look_at(tmp_path).gpus == ("/dev/nvidia0", "/dev/nvidia1")


def test_an_empty_machine_is_no_error(tmp_path: Path) -> None:
    seen = look_at(tmp_path)
    assert (seen.gpus, seen.driver, seen.packages, seen.torch_cuda) == ((), None, {}, None)


def test_a_broken_torch_is_still_told(machine: Path) -> None:
    (machine / "site/torch/version.py").write_text("__version__ = (\n")
    assert look_at(machine).packages == {"torch": "2.13.0"}


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles", "all", "none", "0,0", "cuda:0"])
def test_hidden_gpus_are_an_error(machine: Path, value: str) -> None:
    (finding,) = gpu_hidden_by_environment.function(look_at(machine, CUDA_VISIBLE_DEVICES=value))
    assert finding.severity == "error"
    assert "hides all 2 GPUs" in finding.message


@pytest.mark.parametrize("value", ["0", "1,0", "GPU-8932f937", "0,1,"])
def test_chosen_gpus_are_silent(machine: Path, value: str) -> None:
    assert list(gpu_hidden_by_environment.function(look_at(machine, CUDA_VISIBLE_DEVICES=value))) == []


def test_without_gpus_nothing_is_hidden(tmp_path: Path) -> None:
    assert list(gpu_hidden_by_environment.function(look_at(tmp_path, CUDA_VISIBLE_DEVICES=""))) == []


def test_the_machine_is_stated_plainly(machine: Path) -> None:
    lines = statement(look_at(machine), None)
    assert "torch 2.13.0+cu130 (built for CUDA 13.0)" in lines
    assert "2 NVIDIA GPU(s): NVIDIA L40S, NVIDIA L40S, driver 580.65.06" in lines
    assert statement(Environment(), None)[1:] == [
        "torch is not installed",
        "no GPU here: training runs on the CPU",
    ]
