"""What the driver leaves behind, read from folders of files: the kernel's log, device files, MPS, Rosetta."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmdoctor.engine import Gatherer, judge
from vlmdoctor.evidence.environment import Environment, Gpu, Mps, Nvml, Process
from vlmdoctor.finding import Finding
from vlmdoctor.probes.machine.driver_traces import holders, mps, xids
from vlmdoctor.probes.machine.nvml import merged
from vlmdoctor.probes.machine.saved import understand
from vlmdoctor.probes.machine.snapshot import snapshot
from vlmdoctor.rulebook import rules_in

GIB = 1024**3
RULES = [rule for rule in rules_in("env") if "demands" not in rule.requirements]


def findings(environment: Environment) -> dict[str, Finding]:
    report = judge(RULES, Gatherer(None, [environment]), command="test", target="")
    assert report.crashed == ()
    return {finding.rule: finding for finding in report.findings}


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine with two GPUs, whose device files are numbered the other way round than the bus."""
    for number, bus in ((1, "0000:17:00.0"), (0, "0000:65:00.0")):
        folder = tmp_path / "proc/driver/nvidia/gpus" / bus
        folder.mkdir(parents=True)
        (folder / "information").write_text(f"Model: NVIDIA L40S\nDevice Minor: \t {number}\n")
        (tmp_path / "dev").mkdir(exist_ok=True)
        (tmp_path / f"dev/nvidia{number}").touch()
    (tmp_path / "dev/nvidia-uvm").touch()
    (tmp_path / "proc/driver/nvidia/version").write_text("NVRM version: Kernel Module  580.65.06  Tue\n")
    (tmp_path / "proc/self").mkdir()
    return tmp_path


def run(root: Path, pid: int, name: str, *opened: str) -> None:
    (root / f"proc/{pid}/fd").mkdir(parents=True)
    (root / f"proc/{pid}/comm").write_text(f"{name}\n")
    for number, path in enumerate(opened):
        (root / f"proc/{pid}/fd/{number}").symlink_to(path)


def test_the_kernel_s_log_is_read_for_failing_gpus(machine: Path) -> None:
    (machine / "dev/kmsg").write_bytes(
        b"6,1,5;NVRM: loading NVIDIA UNIX x86_64 Kernel Module  580.65.06\n"
        b"4,2,6;NVRM: Xid (PCI:0000:17:00): 31, pid=4711, name=python, MMU Fault\n"
        b"3,3,7;NVRM: Xid (PCI:0000:65:00): 79, pid='<unknown>', GPU has fallen off the bus.\n"
        b"3,4,8;NVRM: Xid (PCI:0000:65:00): 79, again \xff\n"
    )
    (xid,) = xids(machine)
    assert (xid.code, xid.bus) == (79, "0000:65:00")
    found = findings(snapshot(machine, {}, []))["gpu-error-logged"]
    assert "0000:65:00, Xid 79, it fell off the bus" in found.message


def test_without_a_log_nothing_is_said(machine: Path) -> None:
    assert xids(machine) == ()
    (machine / "dev/kmsg").mkdir()
    assert xids(machine) == ()


def test_open_device_files_tell_who_holds_the_memory(machine: Path) -> None:
    run(machine, 4711, "python", "/dev/null", "/dev/nvidia1", "/dev/nvidia-uvm", "socket:[1]")
    run(machine, 12, "nvidia-persiste", "/dev/nvidia0", "/dev/nvidia1")
    run(machine, 13, "bash", "/dev/pts/0")
    gpus = (
        Gpu(bus="00000000:17:00.0", memory=48 * GIB, used=40 * GIB),
        Gpu(bus="00000000:65:00.0", memory=48 * GIB, used=30 * GIB),
    )
    assert holders(machine, gpus) == {0: (Process(pid=4711, name="python"),)}
    environment = merged(snapshot(machine, {}, []), (Nvml(), gpus, None), machine)
    assert [gpu.processes for gpu in environment.gpus] == [(Process(pid=4711, name="python"),), None]
    assert findings(environment)["gpu-memory-in-use"].measured["programs"] == ["python (4711)"]


@pytest.mark.parametrize(
    ("files", "process", "value", "expected"),
    [
        (
            ["tmp/mps/control"],
            "nvidia-cuda-mps",
            "/tmp/mps",
            Mps(folder="/tmp/mps", control=True, daemon=True),
        ),
        (["tmp/mps/control"], "python", "/tmp/mps", Mps(folder="/tmp/mps", control=True, daemon=False)),
        ([], "nvidia-cuda-mps", "/tmp/mps", Mps(folder="/tmp/mps", control=False, daemon=True)),
        ([], "python", "/dev/null", None),
        ([], "python", "", None),
    ],
)
def test_the_multi_process_service(
    machine: Path, files: list[str], process: str, value: str, expected: Mps | None
) -> None:
    for name in files:
        (machine / name).parent.mkdir(parents=True)
        (machine / name).touch()
    run(machine, 4711, process)
    environ = {"CUDA_MPS_PIPE_DIRECTORY": value}
    assert mps(machine, environ, contained=False) == expected
    told = "mps-not-running" in findings(snapshot(machine, environ, []))
    assert told == (expected is not None and not (expected.control and expected.daemon))


def test_a_translated_python_in_a_report() -> None:
    # pytorch/pytorch#146236
    text = (
        "PyTorch version: 2.6.0\nCUDA used to build PyTorch: None\nOS: macOS 15.3 (x86_64)\n"
        "Python version: 3.12.8 (64-bit runtime)\nPython platform: macOS-10.16-x86_64-i386-64bit\n"
        "GPU models and configuration: No CUDA\nNvidia driver version: No CUDA\n\nCPU:\n{cpu}\n\n"
        "[pip3] numpy==2.2.2\n[pip3] torch==2.6.0\n"
    )
    assert set(findings(understand(text.format(cpu="Apple M2 Pro"), "x"))) == {"python-under-rosetta"}
    assert findings(understand(text.format(cpu="Intel(R) Core(TM) i7"), "x")) == {}
