"""CUDA_VISIBLE_DEVICES read entry by entry, held against torch's own parser over invented GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import fake_nvml
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmdoctor.knowledge.visible_devices import VARIABLE, read

UUIDS = ["GPU-aaaa0000", "GPU-aabb0000", "GPU-bbbb0000", "GPU-cccc0000"]


def torch_counts(value: str, count: int) -> int | None:
    """How many of `count` GPUs torch sees; None where it raises ValueError."""
    with (
        patch.dict(os.environ, {VARIABLE: value}),
        patch("torch.cuda._raw_device_count_nvml", lambda: count),
        patch("torch.cuda._raw_device_uuid_nvml", lambda: UUIDS[:count]),
    ):
        try:
            return torch.cuda._device_count_nvml()
        except ValueError:
            return None


entries = st.one_of(
    st.sampled_from(
        ["0", "1", "2", "3", "9", "00", "-1", "", " 1", "1 ", "+2", "0-3", "1.0", "0x1", "-", "²"]
    ),
    st.sampled_from([*UUIDS, "GPU-aa", "GPU-b", " GPU-bbbb0000", "gpu-bbbb0000", "MIG-a", "all", "cuda:0"]),
    st.text(alphabet="0123456789+- GPUMIaab", max_size=6),
)
values = st.one_of(st.lists(entries, max_size=5).map(",".join), st.text(max_size=12))


@settings(deadline=None, max_examples=600, derandomize=True)
@given(values.filter(lambda value: "\0" not in value and value.isprintable()), st.integers(1, 4))
def test_as_torch_reads_it(value: str, count: int) -> None:
    reading = read(value, count, UUIDS[:count])
    seen = torch_counts(value, count)
    if seen is None:
        assert reading.crashes
    elif reading.visible is None:
        assert seen == -1
    else:
        assert not reading.crashes
        assert len(reading.visible) == seen
        assert [entry.text for entry in reading.entries] == value.split(",")
        assert sorted(e.gpu for e in reading.entries if e.gpu is not None) == sorted(reading.visible)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(values, st.integers(0, 4))
def test_what_was_probably_meant_is_read_as_it_says(value: str, count: int) -> None:
    meant = read(value, count, UUIDS[:count]).meant
    if meant not in (None, "unset"):
        again = read(meant, count, UUIDS[:count])
        assert again.as_written and again.visible != ()


@pytest.mark.parametrize(
    ("value", "visible", "meant"),
    [
        ("0,1", (0, 1), None),
        ("", (), None),
        ("-1", (), None),
        ("NoDevFiles", (), None),
        ("all", (), "unset"),
        ("0-3", (0,), "0,1,2,3"),
        ("0:4", (0,), "0,1,2,3"),
        ("0 1", (0,), "0,1"),
        ("0;1", (0,), "0,1"),
        ("1.0", (1,), "1"),
        ("0x1", (0,), None),
        ('"0,1"', (), "0,1"),
        ("[0,1]", (), "0,1"),
        ("cuda:0", (), "0"),
        ("0,0", (), "0"),
        ("00,0", (), "0"),
        ("0,99,1", (0,), None),
        ("0,2,-1,1", (0, 2), None),
        ("99", (), None),
        ("10", (), "1,0"),
        ("0,1,", (0, 1), None),
        ("GPU-aaaa0000, GPU-bbbb0000", (0,), "GPU-aaaa0000,GPU-bbbb0000"),
        (" GPU-bbbb0000", (), "GPU-bbbb0000"),
        ("gpu-bbbb0000", (), "GPU-bbbb0000"),
        ("GPU-aa", (), None),
        ("GPU-b", (2,), None),
        ("0,GPU-bbbb0000", (0,), None),
        ("MIG-x,MIG-y", None, None),
    ],
)
def test_the_values_that_people_set(value: str, visible: tuple[int, ...] | None, meant: str | None) -> None:
    reading = read(value, 4, UUIDS)
    assert (reading.visible, reading.meant) == (visible, meant)


def test_every_entry_has_its_fate() -> None:
    fates = {entry.text: entry.fate for entry in read("1,0-3,7,2", 4, UUIDS).entries}
    assert fates["1"] == "GPU 1"
    assert "only '0' is read" in fates["0-3"]
    assert "there is no GPU 7 (the last is 3)" in fates["7"]
    assert "never read" in fates["2"]


def test_a_sign_alone_crashes_torch() -> None:
    assert read("-", 4).crashes and read("0,+", 4).crashes


def test_torch_itself_over_a_real_library(tmp_path: Path) -> None:
    """The same oracle without patches: torch loads a libnvidia-ml.so.1 that says that there are four GPUs."""
    code = (
        "import json, os, sys, torch\n"
        "def count(value):\n"
        "    os.environ['CUDA_VISIBLE_DEVICES'] = value\n"
        "    return torch.cuda._device_count_nvml()\n"
        "print(json.dumps([count(value) for value in json.loads(sys.argv[1])]))\n"
    )
    asked = ["0,1", "0-3", "0,99,1", "10", "GPU-aa", "GPU-b", "GPU-aaaa0000,GPU-cccc0000", "0,0", "", "3"]
    environ = {**os.environ, "LD_LIBRARY_PATH": str(fake_nvml.build(tmp_path)), "FAKE_GPUS": "4"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asked)],
        capture_output=True,
        text=True,
        env=environ,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [len(read(value, 4, UUIDS).visible or ()) for value in asked]
