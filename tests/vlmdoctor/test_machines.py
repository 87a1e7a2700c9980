"""Snapshots in the shape of real reports: each fault is found, once, and healthy machines are silent.

Written by hand after the public threads named beside them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmdoctor.engine import Gatherer, judge
from vlmdoctor.probes.machine.difference import differences
from vlmdoctor.probes.machine.saved import as_json, load, understand
from vlmdoctor.rulebook import rules_in

MACHINES = Path(__file__).parent / "machines"
RULES = [rule for rule in rules_in("env") if "demands" not in rule.requirements]
EXPECTED: dict[str, dict[str, str]] = {
    # healthy
    "three-l40s.txt": {},  # vllm-project/vllm#7890
    "v100-on-cu118.txt": {},  # vllm-project/vllm#10147
    "wsl-laptop.txt": {},  # vllm-project/vllm#9293
    "new-vllm.txt": {},  # vllm-project/vllm#35404
    "b200-healthy.xml": {},  # persistence mode disabled on a healthy node: NVIDIA/NVSentinel
    "aws-t4.json": {},  # 8 of 16 PCIe lanes, as AWS has them
    "cdi-void.json": {},  # void on purpose, under CDI
    "gb10.json": {},  # NVIDIA/cosmos#180: memory is not supported, sm_121 runs code for sm_120
    "laptop.json": {},
    # faults
    "old-kernel.txt": {"kernel-old": "info"},  # vllm-project/vllm#13497, modelscope/ms-swift#283
    "gh200-cpu-wheel.txt": {"torch-without-gpu-support": "error"},  # pytorch/pytorch#168065
    "driver-too-old.txt": {"driver-too-old": "error"},  # pytorch/pytorch#43058
    "numpy-2.txt": {"numpy-too-new": "error"},  # pytorch/pytorch#135013
    # InternLM/MindSearch#182, cocktailpeanut/fluxgym#283
    "range-in-vllm.txt": {"visible-devices-misread": "error", "variable-misspelt": "warning"},
    "hot-and-worn.xml": {"gpu-memory-errors": "error", "gpu-throttled": "warning"},  # NVIDIA/NVSentinel#890
    "fabric-in-progress.xml": {"fabric-not-ready": "error"},  # huggingface/huggingface_hub#4134
    "number-one-of-one.json": {"gpu-hidden-by-environment": "error"},  # thuml/Autoformer#25
    "slurm-without-gres.json": {"gpu-hidden-by-environment": "error"},  # ray-project/ray#7014
    "void-in-docker.json": {"gpu-kept-from-container": "error"},  # mmartial/ComfyUI-Nvidia-Docker#104
    "v100-on-cu130.json": {"wheel-lacks-gpu-arch": "error"},  # unslothai/unsloth#5876
    "fell-off-the-bus.json": {"gpu-lost": "error"},  # leptonai/gpud#1209
    "mismatch-after-update.json": {"driver-mismatch": "error"},  # NVIDIA/nvidia-docker#1256
}


def test_every_file_is_expected_to_be_something() -> None:
    assert {path.name for path in MACHINES.iterdir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_the_machine_is_judged_right(name: str) -> None:
    report = judge(RULES, Gatherer(None, [load(MACHINES / name)]), command="test", target=name)
    assert report.crashed == ()
    assert {finding.rule: str(finding.severity) for finding in report.findings} == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_saved_is_read_back(name: str) -> None:
    first = load(MACHINES / name)
    again = understand(as_json(first), name)
    assert again == first
    assert differences(first, again) == []


def test_what_a_report_cannot_show_is_skipped_with_the_reason() -> None:
    report = judge(RULES, Gatherer(None, [load(MACHINES / "three-l40s.txt")]), command="test", target="")
    reasons = dict(report.skipped)
    assert reasons["shared-memory-small"] == "a collect_env report does not show it"
    assert reasons["gpu-hidden-by-environment"] == "a collect_env report does not show it"
    assert "driver-too-old" in report.ran


def test_reports_are_read_through_quotation_marks() -> None:
    text = (MACHINES / "driver-too-old.txt").read_text()
    quoted = "\r\n".join(f"> {line}" for line in text.splitlines())
    seen = understand(quoted, "a mail")
    assert (seen.torch_cuda, len(seen.gpus)) == ("13.0", 4)
    assert seen.driver is not None and seen.driver.version == "550.54.15"


def test_a_torch_that_could_not_be_imported_is_not_called_one_for_the_cpu() -> None:
    text = (MACHINES / "three-l40s.txt").read_text()
    text = text.replace("PyTorch version: 2.4.0+cu121", "PyTorch version: N/A")
    report = judge(RULES, Gatherer(None, [understand(text, "x")]), command="test", target="")
    assert report.findings == ()
    assert dict(report.skipped)["torch-without-gpu-support"].startswith("torch could not be imported")


def test_differences_between_two_nodes() -> None:
    one, other = load(MACHINES / "number-one-of-one.json"), load(MACHINES / "v100-on-cu130.json")
    found = {what: (before, after) for what, before, after in differences(one, other)}
    assert found["variables CUDA_VISIBLE_DEVICES"] == ("1", "not there")
    assert found["gpus 0 name"] == ("NVIDIA GeForce RTX 3090", "Tesla V100-SXM2-32GB")
    assert not any("used" in what for what in found)
