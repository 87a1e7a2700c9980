"""The torch-free snapshot of a machine, read from folders of files."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
from pathlib import Path

import pytest

from vlmdoctor.engine import Gatherer, judge
from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding
from vlmdoctor.probes.machine.elf import defined, undefined
from vlmdoctor.probes.machine.snapshot import snapshot
from vlmdoctor.reporters.machine import device_sections, static_sections
from vlmdoctor.reporters.machine_verdict import verdict_of
from vlmdoctor.rulebook import rules_in
from vlmdoctor.rules.env.gpu_hidden_by_environment import gpu_hidden_by_environment

ARCHS = "sm_75 sm_80 sm_86 sm_90 sm_100 sm_120"


def add_torch(site: Path, version: str = "2.13.0+cu130", cuda: str | None = "13.0") -> None:
    (site / "torch/lib").mkdir(parents=True)
    (site / "torch/version.py").write_text(
        "from typing import Optional\n"
        f"__version__ = {version!r}\ndebug = False\ncuda: Optional[str] = {cuda!r}\n"
        "hip: Optional[str] = None\nxpu: Optional[str] = None\n"
    )
    (site / "torch/lib/libtorch_python.so").write_bytes(
        b"\x7fELF junk \0sm_\0sm_90a is named here\0" + ARCHS.encode() + b"\0 more junk"
    )
    add_package(site, "torch", version.partition("+")[0])


def add_package(site: Path, name: str, version: str, *requires: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    lines = [f"Requires-Dist: {need}" for need in requires]
    (folder / "METADATA").write_text(
        "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, "", "Words"])
    )


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with two GPUs, a healthy driver and a torch built for CUDA 13.0."""
    for number, bus in enumerate(("0000:17:00.0", "0000:65:00.0")):
        folder = tmp_path / "proc/driver/nvidia/gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(
            f"Model: \t\t NVIDIA L40S\nIRQ:   \t\t 52\nGPU UUID: \t GPU-{number}a1b2c3d\n"
            f"Device Minor: \t {number}\n"
        )
        device = tmp_path / "sys/bus/pci/devices" / bus
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030200\n")
        (tmp_path / "sys/bus/pci/drivers/nvidia").mkdir(parents=True, exist_ok=True)
        (device / "driver").symlink_to("../../drivers/nvidia")
    (tmp_path / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  Sun Jul 27 07:18:30 UTC 2025\n"
    )
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    library = tmp_path / "usr/lib/x86_64-linux-gnu"
    library.mkdir(parents=True)
    (library / "libcuda.so.580.65.06").touch()
    (library / "libcuda.so.1").symlink_to("libcuda.so.580.65.06")
    (tmp_path / "proc/meminfo").write_text("MemTotal: 131072000 kB\nMemAvailable: 120000000 kB\n")
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/status").write_text("Name:\tx\nCpus_allowed_list:\t0-11,24-27\n")
    (tmp_path / "proc/self/limits").write_text("Max open files            65536       1048576    files\n")
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "work").mkdir()
    add_torch(tmp_path / "site")
    return tmp_path


def look_at(machine: Path, **environ: str) -> Environment:
    return snapshot(
        machine, {"PATH": "", "HOME": "/work", **environ}, [str(machine / "site")], machine / "work"
    )


def findings(environment: Environment) -> dict[str, Finding]:
    # The disk is the test machine's own.
    host = environment.host and dataclasses.replace(environment.host, folders=())
    given = dataclasses.replace(environment, host=host, kernel="6.8.0")
    report = judge(rules_in("env"), Gatherer(None, [given]), command="test", target="")
    assert not report.crashed
    return {finding.rule: finding for finding in report.findings}


def test_gpus_driver_and_build_are_read_from_files(machine: Path) -> None:
    seen = look_at(machine)
    assert seen.names == ("NVIDIA L40S", "NVIDIA L40S")
    assert [gpu.uuid for gpu in seen.gpus] == ["GPU-0a1b2c3d", "GPU-1a1b2c3d"]
    assert seen.driver is not None and seen.torch is not None and seen.host is not None
    assert (seen.driver.version, seen.driver.user_version) == ("580.65.06", "580.65.06")
    assert seen.packages == {"torch": "2.13.0+cu130"}
    assert (seen.torch_cuda, seen.torch.archs) == ("13.0", tuple(ARCHS.split()))
    assert (seen.host.cpus, seen.host.quota, seen.host.open_files) == (16, None, 65536)
    assert [(gpu.vendor, gpu.driver) for gpu in seen.pci or ()] == [("nvidia", "nvidia")] * 2
    assert findings(seen) == {}


def test_device_files_count_where_the_driver_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-caps"):
        (tmp_path / "dev" / name).touch()
    assert len(look_at(tmp_path).gpus) == 2


def test_a_container_that_was_given_one_gpu_of_two(machine: Path) -> None:
    (machine / "dev/nvidia0").unlink()
    assert [gpu.uuid for gpu in look_at(machine).gpus] == ["GPU-1a1b2c3d"]


def test_an_empty_machine_is_no_error(tmp_path: Path) -> None:
    seen = look_at(tmp_path)
    assert (seen.gpus, seen.driver, seen.packages, seen.torch) == ((), None, {}, None)
    assert list(findings(seen)) == ["torch-not-importable"]


def test_a_broken_torch_is_still_told(machine: Path) -> None:
    (machine / "site/torch/version.py").write_text("__version__ = (\n")
    assert look_at(machine).packages == {"torch": "2.13.0"}


@pytest.mark.parametrize("value", ["", "-1", "NoDevFiles", "all", "none", "0,0", "cuda:0", "2", "-", '"0,1"'])
def test_hidden_gpus_are_one_error(machine: Path, value: str) -> None:
    (finding,) = findings(look_at(machine, CUDA_VISIBLE_DEVICES=value)).values()
    assert (finding.rule, finding.severity) == ("gpu-hidden-by-environment", "error")


@pytest.mark.parametrize("value", ["0", "1,0", "GPU-1a1b", "0,1,"])
def test_chosen_gpus_are_silent(machine: Path, value: str) -> None:
    assert findings(look_at(machine, CUDA_VISIBLE_DEVICES=value)) == {}


def test_without_gpus_nothing_is_hidden(tmp_path: Path) -> None:
    assert list(gpu_hidden_by_environment.function(look_at(tmp_path, CUDA_VISIBLE_DEVICES=""))) == []


def test_a_wheel_for_the_cpu_has_the_line_that_mends_it(machine: Path) -> None:
    shutil.rmtree(machine / "site")
    add_torch(machine / "site", "2.13.0+cpu", None)
    add_package(machine / "site", "torchvision", "0.28.0")
    (finding,) = findings(look_at(machine)).values()
    assert finding.rule == "torch-without-gpu-support"
    assert finding.fix is not None
    assert finding.fix.commands == (
        "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cu130",
    )


def test_the_device_for_unified_memory_is_missed(machine: Path) -> None:
    (machine / "dev/nvidia-uvm").unlink()
    assert list(findings(look_at(machine))) == ["uvm-device-missing"]


def test_a_driver_that_was_updated_without_a_restart(machine: Path) -> None:
    library = machine / "usr/lib/x86_64-linux-gnu"
    (library / "libcuda.so.580.65.06").rename(library / "libcuda.so.580.95.05")
    (library / "libcuda.so.1").unlink()
    (library / "libcuda.so.1").symlink_to("libcuda.so.580.95.05")
    assert list(findings(look_at(machine))) == ["driver-mismatch"]


def test_a_driver_that_is_too_old_explains_the_rest(machine: Path) -> None:
    version = machine / "proc/driver/nvidia/version"
    version.write_text(version.read_text().replace("580.65.06", "410.129"))
    (machine / "usr/lib/x86_64-linux-gnu/libcuda.so.1").unlink()
    assert list(findings(look_at(machine))) == ["driver-too-old"]


def test_a_gpu_whose_driver_is_not_loaded(machine: Path) -> None:
    for gone in ("proc/driver", "dev", "usr", "sys/bus/pci/drivers"):
        shutil.rmtree(machine / gone)
    found = findings(look_at(machine))
    assert list(found) == ["driver-not-loaded"]
    (machine / ".dockerenv").touch()
    assert findings(look_at(machine))["driver-not-loaded"].severity == "warning"
    assert list(findings(look_at(machine, NVIDIA_VISIBLE_DEVICES="void"))) == ["gpu-kept-from-container"]


def test_a_container_on_a_gpu_host_that_was_given_no_gpu(machine: Path) -> None:
    for node in (machine / "dev").iterdir():
        node.unlink()
    (machine / ".dockerenv").touch()
    seen = look_at(machine)
    assert seen.gpus == ()
    assert {name: str(f.severity) for name, f in findings(seen).items()} == {"driver-not-loaded": "warning"}
    shutil.rmtree(machine / "site")
    add_torch(machine / "site", "2.13.0+cpu", None)
    assert findings(look_at(machine)) == {}


def test_pairs_are_held_against_their_own_requirements(machine: Path) -> None:
    add_package(
        machine / "site", "torchvision", "0.27.1", "numpy", "torch==2.12.1", 'scipy; extra == "scipy"'
    )
    finding = findings(look_at(machine))["requirement-unmet"]
    assert finding.message == "torchvision 0.27.1 needs torch ==2.12.1, and 2.13.0+cu130 is installed"


def test_libraries_that_shadow_the_wheels(machine: Path) -> None:
    wheel = machine / "site/nvidia/cudnn/lib"
    wheel.mkdir(parents=True)
    (wheel / "libcudnn.so.9").touch()
    add_package(machine / "site", "nvidia-cudnn-cu13", "9.19.0.56")
    old = machine / "usr/local/cuda/lib64"
    old.mkdir(parents=True)
    (old / "libcudnn.so.9.1.0").touch()
    (old / "libcudnn.so.9").symlink_to("libcudnn.so.9.1.0")
    assert findings(look_at(machine)) == {}
    finding = findings(look_at(machine, LD_LIBRARY_PATH="/usr/local/cuda/lib64"))["libraries-shadowed"]
    assert (finding.severity, finding.measured) == ("error", {"libcudnn.so.9": "9.1.0"})
    assert "site-packages" not in str(finding.threshold)


def test_limits_of_a_container(machine: Path) -> None:
    group = machine / "sys/fs/cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("200000 100000\n")
    (group / "memory.max").write_text(f"{4 * 1024**3}\n")
    (group / "memory.current").write_text(f"{3 * 1024**3}\n")
    (machine / "proc/mounts").write_text("shm /dev/shm tmpfs rw,nosuid,size=65536k,inode64 0 0\n")
    (machine / "proc/self/limits").write_text("Max open files            256       1048576    files\n")
    seen = look_at(machine)
    assert seen.host is not None
    assert (seen.host.quota, seen.host.memory, seen.host.shm) == (2.0, 4 * 1024**3, 64 * 1024**2)
    assert {name: str(f.severity) for name, f in findings(seen).items()} == {
        "shared-memory-small": "error",
        "open-files-low": "warning",
        "cpu-quota": "warning",
        "memory-low": "warning",
    }


def test_the_cache_is_looked_up_where_it_really_is(machine: Path) -> None:
    (machine / "big/hub").mkdir(parents=True)
    (machine / "work/cache").symlink_to("../big")
    seen = look_at(machine, HF_HOME="/work/cache")
    assert seen.host is not None
    folders = {folder.use: folder for folder in seen.host.folders}
    assert (folders["hub cache"].path, folders["hub cache"].resolved) == ("/work/cache/hub", "/big/hub")


def test_a_file_of_that_name_is_imported_instead_of_torch(machine: Path) -> None:
    (machine / "script").mkdir()
    (machine / "script/torch.py").touch()
    seen = snapshot(machine, {}, [str(machine / "script"), str(machine / "site")], machine / "work")
    assert list(findings(seen)) == ["torch-not-importable"]


def test_secrets_are_never_kept(machine: Path) -> None:
    kept = look_at(
        machine, HF_TOKEN="hf_abcdefghijkl", HUGGING_FACE_HUB_TOKEN="x", MY_OWN="x", NCCL_DEBUG="INFO"
    )
    assert kept.variables == {"HF_TOKEN": "(set)", "HUGGING_FACE_HUB_TOKEN": "(set)", "NCCL_DEBUG": "INFO"}


def test_symbols_of_a_compiled_extension(machine: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    (tmp_path / "c10.c").write_text("void _ZN3c103oneEv(void) {}\n")
    (tmp_path / "ext.c").write_text(
        "void _ZN3c103oneEv(void); void _ZN3c105goneEv(void);\n"
        "void go(void) { _ZN3c103oneEv(); _ZN3c105goneEv(); }\n"
    )
    flash = machine / "site/flash_attn_2_cuda.cpython-312.so"
    for source, made in (("c10.c", machine / "site/torch/lib/libc10.so"), ("ext.c", flash)):
        subprocess.run([compiler, "-shared", "-fPIC", "-o", str(made), str(tmp_path / source)], check=True)
    assert b"_ZN3c105goneEv" in undefined(flash)
    assert b"go" in defined(flash)
    add_package(machine / "site", "flash-attn", "2.8.3")
    (finding,) = findings(look_at(machine)).values()
    assert finding.rule == "extension-built-for-other-torch"
    assert finding.measured["missing_symbols"] == ["_ZN3c105goneEv"]


def test_the_machine_is_stated_plainly(machine: Path) -> None:
    seen = look_at(machine, CUDA_VISIBLE_DEVICES="0-1")
    lines = {section.title: section.line for section in (*static_sections(seen), *device_sections(seen))}
    assert "torch 2.13.0+cu130 (built for CUDA 13.0)" in lines["Python and packages"]
    assert lines["GPUs and driver"] == "2 × NVIDIA L40S; driver 580.65.06"
    assert lines["Which GPUs torch sees"].endswith('is "0-1": torch sees 1 GPU (number 0) of 2')
    assert verdict_of(look_at(machine), ()).line == "✓ can train on 2 GPUs"
    assert verdict_of(Environment(), ()).line == "✗ not ready to train: torch is not installed"
