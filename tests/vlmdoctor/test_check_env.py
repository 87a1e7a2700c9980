"""`vlmdoctor check-env` as a command: real processes, a stand-in for the driver, torch never imported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import fake_nvml
import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MACHINES = Path(__file__).parent / "machines"

# Torch is not there at all for this interpreter: importing it raises.
WITHOUT_TORCH = """
import sys
REFUSED = {"torch", "transformers", "matplotlib", "pandas", "numpy"}
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ImportError(f"{name} must not be imported")
sys.meta_path.insert(0, Refuse())
from vlmdoctor.cli.main import run
run()
"""
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("CUDA", "NVIDIA", "NCCL", "HF_", "OMP_", "MKL_", "PYTORCH", "RANK", "WORLD"))
}


def check_env(
    *arguments: str | Path, cwd: Path = EXAMPLES.parent, **environ: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "check-env", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**CLEAN, **environ},
        timeout=60,
    )


def report_of(*arguments: str | Path, **environ: str) -> dict:
    result = check_env(*arguments, "--output-format", "json", **environ)
    assert result.stdout, result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder with the stand-ins for the driver's libraries."""
    pytest.importorskip("pynvml")
    return str(fake_nvml.build(tmp_path_factory.mktemp("driver")))


def test_the_hidden_gpu_is_found_without_importing_torch() -> None:
    result = check_env("examples/hidden_gpu.py")
    assert result.returncode == 1, result.stderr
    assert "gpu-hidden-in-source SRC101" in result.stdout
    line = (EXAMPLES / "hidden_gpu.py").read_text().splitlines().index(
        'os.environ["CUDA_VISIBLE_DEVICES"] = ""'
    ) + 1
    assert f"examples/hidden_gpu.py:{line}" in result.stdout
    assert "[✗] Sources (error): 1 file searched" in result.stdout
    assert result.stderr == ""


def test_the_repaired_script_passes_with_a_plain_statement() -> None:
    result = check_env("examples/hidden_gpu_fixed.py", "--select", "SRC")
    assert result.returncode == 0, result.stdout
    assert "✓ 0 errors, 0 warnings · 6 checks · " in result.stdout
    assert result.stdout.startswith("✓ can train ")
    assert f"\n[✓] Python and packages: Python {sys.version.split()[0]} on " in result.stdout


def test_a_machine_without_a_gpu_passes_and_is_told_what_it_can_do() -> None:
    result = check_env("--from", MACHINES / "laptop.json")
    assert result.returncode == 0
    assert "Judged from a saved snapshot" in result.stdout
    assert "✓ can train small models on the CPU" in result.stdout
    assert "[-] skipped, there is no NVIDIA driver to ask (NVML): 2 checks" in result.stdout


def test_json_holds_the_snapshot() -> None:
    report = report_of("--fail-on", "never")
    assert report["command"] == "check-env"
    assert "gpu-hidden-by-environment" in report["ran"]
    assert "gpu-hidden-in-source" in [skip["rule"] for skip in report["skipped"]]
    assert set(report["facts"]) >= {"python", "platform", "packages", "gpus", "variables", "snapshot"}
    assert report["facts"]["snapshot"]["host"]["cpus"] >= 1


def test_json_findings_name_file_and_line() -> None:
    report = report_of("examples", "--select", "SRC")
    (finding,) = report["findings"]
    assert (finding["rule"], finding["severity"]) == ("gpu-hidden-in-source", "error")
    assert finding["file"] == "examples/hidden_gpu.py"
    assert report["verdict"] == "fail"
    assert report["facts"]["files"] >= 6


@pytest.mark.parametrize("arguments", [[], ["examples/hidden_gpu.py", "--require", "cpus=1", "--save", "x"]])
def test_nothing_slow_is_imported(tmp_path: Path, arguments: list[str]) -> None:
    # No harm in itself, but importing it takes as long as the check does.
    program = WITHOUT_TORCH.replace('{"torch"', '{"pydantic", "torch"')
    arguments = [str(tmp_path / "x") if argument == "x" else argument for argument in arguments]
    result = subprocess.run(
        [sys.executable, "-c", program, "check-env", "--fail-on", "never", *arguments],
        capture_output=True,
        text=True,
        cwd=EXAMPLES.parent,
        env=CLEAN,
        timeout=60,
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_fail_on_never_and_exit_zero() -> None:
    assert check_env("examples/hidden_gpu.py", "--fail-on", "never").returncode == 0
    assert check_env("examples/hidden_gpu.py", "--exit-zero").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.py"], "nowhere.py"),
        (["--require", "vramm=40GB"], "did you mean 'vram'"),
        (["--require", "vram=40XB"], "is no unit"),
        (["--from", "nowhere.json"], "nowhere.json can't be opened: no such file"),
        (["--from", "README.md"], "is neither a snapshot"),
        (["--from", "README.md", "--live"], "can't be combined"),
        (["--save", "no/such/folder/x.json"], "can't write"),
        (["--select", "ENV9X"], "selects no rule"),
    ],
)
def test_bad_usage_is_one_sentence_and_status_2(arguments: list[str], words: str) -> None:
    result = check_env(*arguments)
    assert result.returncode == 2
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_gpus_are_told_by_the_driver(driver: str) -> None:
    report = report_of(LD_LIBRARY_PATH=driver, FAKE_GPUS="2", CUDA_VISIBLE_DEVICES="0-1")
    snapshot = report["facts"]["snapshot"]
    assert snapshot["nvml"] == {"state": "answered", "reason": "", "cuda": "13.0"}
    assert [(g["name"], g["memory"], g["capability"]) for g in snapshot["gpus"]] == [
        ("NVIDIA L4", 24 * 1024**3, [8, 9])
    ] * 2
    assert snapshot["driver"]["version"] == "580.65.06"
    found = {finding["rule"] for finding in report["findings"]}
    assert "visible-devices-misread" in found


@pytest.mark.parametrize(
    ("environ", "rule"),
    [
        ({"FAKE_INIT": "18"}, "driver-mismatch"),
        ({"FAKE_INIT": "999"}, "nvml-does-not-answer"),
        ({"FAKE_INIT": "crash"}, "nvml-does-not-answer"),
        ({"FAKE_LOST": "1"}, "gpu-lost"),
        ({"FAKE_USED_GIB": "20"}, "gpu-memory-in-use"),
    ],
)
def test_a_driver_that_fails_is_a_finding(driver: str, environ: dict[str, str], rule: str) -> None:
    report = report_of(LD_LIBRARY_PATH=driver, FAKE_GPUS="2", **environ)
    assert rule in [finding["rule"] for finding in report["findings"]]
    assert report["crashed"] == []


def test_a_driver_that_hangs_is_killed(driver: str) -> None:
    started = time.perf_counter()
    report = report_of("--timeout", "0.5", LD_LIBRARY_PATH=driver, FAKE_GPUS="2", FAKE_INIT="hang")
    assert time.perf_counter() - started < 20
    assert "the NVIDIA driver does not answer" in [finding["message"] for finding in report["findings"]]


def test_memory_that_is_shared_is_not_called_none(driver: str) -> None:
    report = report_of(LD_LIBRARY_PATH=driver, FAKE_GPUS="1", FAKE_UNIFIED="1")
    assert "memory" not in report["facts"]["snapshot"]["gpus"][0]


def test_cuda_is_started_in_a_process_of_its_own(driver: str) -> None:
    well = report_of("--live", LD_LIBRARY_PATH=driver, FAKE_GPUS="2")
    assert well["facts"]["snapshot"]["live"] == {
        "state": "answered",
        "devices": 2,
        "by_torch": False,
    }
    ill = report_of("--live", "--select", "ENV217", LD_LIBRARY_PATH=driver, FAKE_GPUS="2", FAKE_CUINIT="999")
    assert [finding["rule"] for finding in ill["findings"]] == ["cuda-does-not-start"]


def test_require_is_a_gate(driver: str) -> None:
    has = {"LD_LIBRARY_PATH": driver, "FAKE_GPUS": "2"}
    gate = ("--select", "ENV601", "--require")
    snapshot = check_env("--save", "x.json", "--select", "ENV101", cwd=Path(driver), **has)
    assert snapshot.returncode == 0, snapshot.stdout
    assert check_env(*gate, "fp8,bf16,vram=24GB,driver=570", **has).returncode == 0
    result = check_env(*gate, "8-gpus,vram=40GB", **has)
    assert result.returncode == 1
    assert "required vram=40GB, found 25.8 GB" in result.stdout
    # From a report that can't show it, a gate does not pass.
    result = check_env(*gate, "disk=1GB", "--from", MACHINES / "new-vllm.txt")
    assert result.returncode == 1
    assert "not known" in result.stdout


@pytest.mark.parametrize(
    "body", ["raise ImportError('libcudart.so.13 is missing')", "import time; time.sleep(600)"]
)
def test_a_torch_that_can_not_be_imported_is_no_hindrance(tmp_path: Path, body: str) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(body)
    (tmp_path / "torch/version.py").write_text("__version__ = '9.9.9+cu130'\ncuda = '13.0'\n")
    result = subprocess.run(
        [sys.executable, "-m", "vlmdoctor", "check-env", "--fail-on", "never"],
        capture_output=True,
        text=True,
        cwd=EXAMPLES.parent,
        env={**CLEAN, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(EXAMPLES.parent)])},
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert "torch 9.9.9+cu130 (built for CUDA 13.0)" in result.stdout


def test_the_pasted_block_names_nobody(tmp_path: Path) -> None:
    home = tmp_path / "home" / "wilhelmina"
    home.mkdir(parents=True)
    result = check_env(
        "--paste",
        "--fail-on",
        "never",
        HOME=str(home),
        USER="wilhelmina",
        HOSTNAME="node17.cluster.example",
        HF_TOKEN="hf_abcdefghijklmnop",
        HF_HOME="/home/wilhelmina/models",
        HF_ENDPOINT="https://wilhelmina:secret@hub.cluster.example/hub",
        MASTER_ADDR="node03.cluster.example",
        NCCL_SOCKET_IFNAME="10.1.2.3",
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("```") == 2
    assert "torch " in result.stdout
    for private in ("wilhelmina", "node17", "node03", "cluster", "hf_abc", "secret", "10.1.2.3"):
        assert private not in result.stdout


def test_differences_are_told(tmp_path: Path) -> None:
    first, second = MACHINES / "number-one-of-one.json", MACHINES / "slurm-without-gres.json"
    result = check_env("--diff", first, second)
    assert result.returncode == 1
    assert "variables CUDA_VISIBLE_DEVICES" in result.stdout
    same = check_env("--diff", first, first)
    assert (same.returncode, same.stdout) == (0, "no difference\n")


def test_sections_and_verdict_of_a_faulty_machine() -> None:
    result = check_env("-v", "--from", MACHINES / "range-in-vllm.txt")
    assert result.returncode == 1
    assert (
        '[✗] Which GPUs torch sees (error): CUDA_VISIBLE_DEVICES is "0-3": torch sees 1 GPU' in result.stdout
    )
    assert "[!] Environment variables (warning)" in result.stdout
    assert "'0-3': GPU 0: of '0-3' only '0' is read" in result.stdout
    assert "export CUDA_VISIBLE_DEVICES=0,1,2,3" in result.stdout
    assert "[?] " not in result.stdout
