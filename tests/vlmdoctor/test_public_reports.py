"""Heads of reports in the shapes in which people paste them, after the public threads named beside them.

Each is judged for what its thread tells, and for nothing else.
"""

from __future__ import annotations

import re

import pytest

from vlmdoctor.engine import Gatherer, judge
from vlmdoctor.probes.machine.saved import decoded, understand
from vlmdoctor.reporters.machine import device_sections
from vlmdoctor.reporters.machine_verdict import verdict_of
from vlmdoctor.rulebook import rules_in

RULES = [rule for rule in rules_in("env") if "demands" not in rule.requirements]
OLD = """Collecting environment information...
PyTorch version: {torch}
Is debug build: False
CUDA used to build PyTorch: {cuda}
ROCM used to build PyTorch: N/A

OS: {os}
GCC version: Could not collect
Libc version: glibc-2.35

Python version: 3.10 (64-bit runtime)
Python platform: {platform}
Is CUDA available: {available}
CUDA runtime version: Could not collect
CUDA_MODULE_LOADING set to: LAZY
GPU models and configuration: {gpus}
Nvidia driver version: {driver}
cuDNN version: Could not collect
HIP runtime version: N/A
Is XNNPACK available: True

CPU:
{cpu}

Versions of relevant libraries:
{pip}
[conda] Could not collect
"""
UBUNTU = "Linux-5.15.0-107-generic-x86_64-with-glibc2.31"


def report(
    torch: str = "2.4.1+cu121",
    gpus: str = "GPU 0: NVIDIA A100-SXM4-40GB",
    driver: str = "550.90.07",
    available: str = "True",
    os: str = "Ubuntu 20.04.6 LTS (x86_64)",
    platform: str = UBUNTU,
    cpu: str = "Architecture: x86_64\nCPU(s): 32",
    cuda: str | None = None,
    pip: str | None = None,
) -> str:
    built = re.search(r"\+cu(\d+)(\d)$", torch)
    cuda = cuda or (f"{built[1]}.{built[2]}" if built else "None")
    pip = pip or f"[pip3] numpy==1.26.4\n[pip3] torch=={torch}"
    several = f"\n{gpus}\n" if gpus.count("GPU ") > 1 else gpus
    return OLD.format(**{**locals(), "gpus": several})


def many(count: int, name: str) -> str:
    return "\n".join(f"GPU {i}: {name}" for i in range(count))


NONE = {"gpus": "No CUDA", "driver": "No CUDA", "available": "False"}
MAC = {**NONE, "platform": "macOS-15.3-arm64-arm-64bit", "os": "macOS 15.3 (arm64)", "cpu": "Apple M1"}
WINDOWS = {"os": "Microsoft Windows 11 Pro", "platform": "Windows-10-10.0.22621-SP0", "cpu": "Family=198"}
QUOTED = "\n".join(f"> {line}" for line in report().split("\n"))

REPORTS: dict[str, tuple[str, dict[str, str]]] = {
    "vllm-project/vllm#4077": (
        report("2.2.1+cu121", many(8, "NVIDIA L20"), "550.54.15", platform="Linux-4.18.0-240.el8.x86_64"),
        {},  # Red Hat keeps old numbers for kernels that it brings up to date
    ),
    "HabanaAI/vllm-fork#967": (report("2.6.0+hpu_1.20.0-543.git4952fce", **NONE), {}),
    "vllm-project/vllm#17167": (
        "\n".join(f"{line:<120}" for line in report("2.6.0+cu124", driver="550.54.15").split("\n")),
        {},
    ),
    "vllm-project/vllm#18285": (report("2.7.0", **MAC), {}),
    "pytorch/pytorch#164943": (report("2.10.0.dev20251008", **{**MAC, "cpu": "Apple M2 Max"}), {}),
    "pytorch/pytorch#48145": (report("1.8.0.dev20201117", **NONE, os="Mac OSX 11.0 (x86_64)"), {}),
    "pytorch/pytorch#137846": (report("2.8.0.dev20250528+cpu", **NONE, **WINDOWS), {}),
    "pytorch/pytorch#51858": (
        report("2.0.1+cu117", "GPU 0: NVIDIA GeForce GTX 1050 Ti", "535.98", **WINDOWS),
        {},
    ),
    "pytorch/pytorch#40682": (
        report("1.5.0+cu101", many(2, "TITAN RTX"), "442.92", "Yes", **WINDOWS).replace("\n", "\n> "),
        {},
    ),
    "pytorch/pytorch#134366": (report("2.4.1+cu121", many(8, "NVIDIA A100-SXM4-40GB")), {}),
    "pytorch/pytorch#46973": (report("1.7.0+cu101", "GPU 0: Tesla T4", "418.67"), {}),
    "pytorch/pytorch#55276": (
        report(
            "1.9.0a0+git041b443",
            "GPU 0: GeForce RTX 2080 with Max-Q Design",
            "460.32.03",
            cuda="11.2",
            pip="[pip3] numpy==1.19.5\n[pip3] torch==1.9.0a0+gitec609e7",
        ).replace("PyTorch version: 1.9", "torch-1.9"),
        {},
    ),
    "DeepSceneSeg/EfficientPS#15": (
        report("1.4.0", "GPU 0: GeForce GTX 980", "460.32.03", "Yes", cuda="10.1"),
        {},
    ),
    "pytorch/vision#8289": (report("2.1.2+cu121", "GPU 0: Tesla V100-SXM2-32GB", "550.54.14"), {}),
    # The driver of the host is old, and torch did start CUDA: over the compatibility package.
    "pytorch/vision#1916": (report("1.4.0+cu100", "GPU 0: Tesla P100-PCIE-16GB", "384.130", "Yes"), {}),
    "a compatibility package": (report("2.6.0+cu124", driver="470.57.02"), {}),
    "vectorch-ai/ScaleLLM#288": (
        report("2.4.0+cu124", "GPU 0: NVIDIA A100 80GB PCIe").replace(
            "Nvidia driver", "GPU topology: GPU0      CPU Affinity\nGPU0     X      0-31\n\nNvidia driver"
        ),
        {},
    ),
    # torch was built for CUDA, the GPUs are there, and torch does not start it.
    "pytorch/pytorch#49081": (
        report("2.4.1+cu121", available="False"),
        {"cuda-does-not-start": "error"},
    ),
    "pytorch/pytorch#37320": (
        report("2.6.0+cu124", driver="470.57.02", available="False"),
        {"driver-too-old": "error"},
    ),
    "pytorch/pytorch#49325": (
        report("1.7.1+cpu", "GPU 0: GeForce MX250", "441.22", "False", **WINDOWS),
        {"torch-without-gpu-support": "error"},
    ),
    "quoted": (QUOTED, {}),
    "in a list": ("\n".join(f"* {line}" for line in report().split("\n")), {}),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_public_report_is_judged_as_its_thread_does(name: str) -> None:
    text, expected = REPORTS[name]
    found = judge(RULES, Gatherer(None, [understand(text, name)]), command="test", target=name)
    assert found.crashed == ()
    assert {f.rule: str(f.severity) for f in found.findings} == expected


@pytest.mark.parametrize(
    "data",
    [
        report().encode("utf-16"),  # PowerShell's >
        report().encode("utf-16-le"),
        report().encode("utf-32"),
        b"\xef\xbb\xbf" + report().replace("\n", "\r\n").encode(),
        ("\x1b[32m" + report().replace("\n", "\x1b[0m\n\x1b[1m")).encode(),
        f"### Env\n<details>\n<summary>here</summary>\n\n```text\n{report()}```\n</details>".encode(),
        ("<pre><code>" + report().replace(">", "&gt;") + "</code></pre>").encode(),
    ],
)
def test_whatever_a_report_is_wrapped_in(data: bytes) -> None:
    environment = understand(decoded(data), "x")
    assert (environment.torch_cuda, environment.names) == ("12.1", ("NVIDIA A100-SXM4-40GB",))
    assert environment.driver is not None and environment.driver.version == "550.90.07"


def test_gpus_that_a_report_could_not_collect_are_not_called_none() -> None:
    for text in (report(gpus="Could not collect"), report().partition("GPU models")[0]):
        environment = understand(text, "x")
        assert "no GPU" not in next(iter(device_sections(environment))).line
        assert verdict_of(environment, ()).line.startswith("? ")


def test_a_report_tells_its_system() -> None:
    assert understand(report(**NONE, **WINDOWS), "x").platform.startswith("Windows")
    assert understand(report(**MAC), "x").platform == "Darwin arm64"
