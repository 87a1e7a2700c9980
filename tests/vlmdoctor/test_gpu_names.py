"""The names that people, drivers and shops have for GPUs, and what `--gpu` makes of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dry_run import tiny_llava, written

from vlmdoctor.errors import UserError
from vlmdoctor.knowledge.gpus import GPUS, gpu_chosen, gpu_named, gpu_names

NAMES = {
    "A100 80GB": "a100-80",
    "a100-40": "a100-40",
    "A100 40": "a100-40",
    "a100_80gb": "a100-80",
    "NVIDIA A100-SXM4-80GB": "a100-80",
    "NVIDIA A100-PCIE-40GB": "a100-40",
    "H100": "h100",
    "H100 80GB": "h100",
    "NVIDIA H100 80GB HBM3": "h100",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200",
    "RTX 4090": "4090",
    "rtx4090": "4090",
    "NVIDIA GeForce RTX 3090": "3090",
    "NVIDIA RTX A6000": "a6000",
    "NVIDIA L40S": "l40s",
    "L4 24GB": "l4",
    "NVIDIA A10G": "a10g",
    "Tesla T4": "t4",
    "Tesla V100-SXM2-32GB": "v100-32",
    "AMD Instinct MI300X OAM": "mi300x",
}


@pytest.mark.parametrize("text", NAMES)
def test_a_name_as_it_is_written(text: str) -> None:
    chosen = gpu_chosen(text)
    assert (chosen.name, chosen.others) == (NAMES[text], ())
    assert gpu_chosen(f"  {text.upper()} ").name == gpu_chosen(text.lower()).name == chosen.name


@pytest.mark.parametrize("name", gpu_names())
def test_each_name_of_the_table_is_itself(name: str) -> None:
    assert gpu_chosen(name).model is gpu_named(name.upper()) is GPUS[name]


@pytest.mark.parametrize(("text", "others"), [("A100", ("a100-80",)), ("V100", ("v100-32",))])
def test_of_several_that_may_be_meant_the_smallest_is_taken(text: str, others: tuple[str, ...]) -> None:
    chosen = gpu_chosen(text)
    assert chosen.others == others
    assert chosen.model.memory < GPUS[others[0]].memory


@pytest.mark.parametrize("text", ["24GB", "24 gb", "24gib", "24G", "24.0GB", "NVIDIA 24GB GPU"])
def test_memory_alone_is_a_gpu_whose_rate_is_not_known(text: str) -> None:
    chosen = gpu_chosen(text)
    assert (chosen.name, chosen.model.memory, chosen.model.half) == ("24GB", 24, None)
    assert gpu_chosen(chosen.name) == chosen


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("4o90", "did you mean 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "did you mean 4090"),  # it has 16 GB
        ("3090 Ti", "did you mean 3090"),
        ("H100 96GB", "h100 has 80 GB here; for memory alone give --gpu 96GB"),
        ("a100-60", "a100 has 40 GB or 80 GB here"),
        ("A100 40 80", "did you mean a100-80 or a100-40"),
        ("abacus", "choose one of b200"),
        ("24", "or give its memory, such as --gpu 24GB"),
        ("", "choose one of"),
        ("0GB", "give one size from 2GB to 4096GB"),
        ("24GB 48GB", "give one size"),
    ],
)
def test_a_name_that_there_is_not(text: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        gpu_chosen(text)
    assert says in str(error.value) and "\n" not in str(error.value)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30) | st.text("a0189h -_gb.x", max_size=12))
def test_any_text_is_a_gpu_or_one_sentence(text: str) -> None:
    try:
        chosen = gpu_chosen(text)
    except UserError as error:
        assert str(error).startswith("--gpu can't be '")
    else:
        assert gpu_chosen(chosen.name).model == chosen.model and 2 <= chosen.model.memory <= 4096


def test_the_names_are_listed_without_torch() -> None:
    program = (
        "import sys; from vlmdoctor.knowledge.gpus import gpu_names; gpu_names(); "
        "print(*(name for name in ('torch', 'transformers', 'typer', 'rich') if name in sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (result.stdout.strip(), result.stderr) == ("", "")


def vlmdoctor(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vlmdoctor", *arguments], capture_output=True, text=True, cwd=cwd, timeout=120
    )


def test_the_one_that_was_taken_is_named(tmp_path: Path) -> None:
    result = vlmdoctor("check", written(tmp_path, tiny_llava()), "--gpu", "NVIDIA A100", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("✓ fits a100-40: ")
    assert "'NVIDIA A100' may be a100-40 or a100-80: that with the least memory was taken" in " ".join(
        result.stdout.split()
    )


@pytest.mark.parametrize("gpu", ["potato", ""])
def test_an_unknown_one_ends_with_status_2(tmp_path: Path, gpu: str) -> None:
    result = vlmdoctor("check", "minivlm", "--gpu", gpu, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"vlmdoctor: --gpu can't be '{gpu}'; ") and result.stderr.count("\n") == 1
