"""Weights that are kept aside come back bit for bit, whatever the disk and the memory do meanwhile."""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vlmdoctor
from vlmdoctor.errors import NotRestored, Unavailable
from vlmdoctor.sandbox import kept_file, kept_tensors
from vlmdoctor.sandbox.kept_tensors import KeptTensors

ROOT = Path(__file__).parents[2]
OPERATIONS = ("seek", "write", "readinto", "posix_fallocate", "fsync", "disk_usage")


class Unreliable(io.RawIOBase):
    """A file whose operations can be made to fail."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file, self._disk = file, disk

    def fileno(self) -> int:
        return self._file.fileno()

    def seek(self, *place: int) -> int:
        self._disk.called("seek")
        return self._file.seek(*place)

    def write(self, content: Any) -> int:
        self._disk.called("write")
        return self._file.write(content[: self._disk.most])

    def readinto(self, buffer: Any) -> int:
        self._disk.called("readinto")
        count = self._file.readinto(buffer[: self._disk.most])
        if self._disk.garbles:
            buffer[0] ^= 1
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


class Disk:
    """Counts operations on temporary files, and fails in those that are asked for.

    Attributes:
        fails: Operation -> the numbers of the calls that fail, counted from 1; empty for all from `since` on.
        most: The most bytes that one call moves.
        garbles: Whether what is read differs from what was written.
    """

    def __init__(self) -> None:
        self.counts = dict.fromkeys(OPERATIONS, 0)
        self.fails: Callable[[str, int], bool] = lambda operation, number: False
        self.error = errno.ENOSPC
        self.most: int | None = None
        self.garbles = False

    def called(self, operation: str) -> None:
        self.counts[operation] += 1
        if self.fails(operation, self.counts[operation]):
            raise OSError(self.error, os.strerror(self.error))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Disk]:
    """A small disk under the test's control, on which every kept weight goes into a file."""
    disk = Disk()
    real = tempfile.TemporaryFile

    def opened(*args: Any, **options: Any) -> Any:
        return Unreliable(real(*args, **options), disk)

    def controlled(module: Any, name: str) -> None:
        function = getattr(module, name)

        def call(*args: Any) -> Any:
            disk.called(name)
            return function(*args)

        monkeypatch.setattr(module, name, call)

    monkeypatch.setattr(tempfile, "TemporaryFile", opened)
    controlled(os, "fsync")
    if hasattr(os, "posix_fallocate"):
        controlled(os, "posix_fallocate")
    controlled(shutil, "disk_usage")
    monkeypatch.setattr(kept_tensors, "IN_MEMORY", 0)
    monkeypatch.setattr(kept_file, "CHUNK", 1000)
    monkeypatch.setattr(kept_file, "folders", lambda: [tmp_path])
    yield disk
    assert list(tmp_path.iterdir()) == []


def tensors() -> list[torch.Tensor]:
    """Of many kinds: types, layouts, values that equality does not tell apart."""
    torch.manual_seed(0)
    odd = torch.tensor([0.0, -0.0, float("nan"), float("inf"), 1e-45])
    return [
        nn.Parameter(torch.randn(40, 30)),
        torch.randn(700).to(torch.bfloat16),
        odd,
        torch.arange(9, dtype=torch.int64),
        torch.tensor(3.0),
        torch.empty(0),
        torch.randn(6, 5).t(),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(8, 8)[:, ::2],
        torch.arange(4).expand(3, 4),
        torch.tensor([True, False]),
        torch.randn(3, dtype=torch.complex64),
        torch.randn(300).to(torch.float8_e4m3fn),
    ]


def bits(tensor: torch.Tensor) -> bytes:
    data = tensor.detach().contiguous()
    data = torch.view_as_real(data) if data.is_complex() else data
    return data.reshape(-1).view(torch.uint8).numpy().tobytes()


def spoil(given: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for tensor in given:
            target = tensor[:1] if tensor.ndim and 0 in tensor.stride() else tensor
            target.copy_(torch.zeros_like(target) if target.any() else torch.ones_like(target))


def test_values_come_back_bit_for_bit_into_the_memory_they_had(disk: Disk) -> None:
    given = tensors()
    before = [(bits(t), t.data_ptr(), t.stride(), t.dtype) for t in given]
    values = KeptTensors(given, aside=True)
    assert disk.counts["write"] and disk.counts["readinto"]
    spoil(given)
    given[0].data = given[0].data.half()
    values.restore()
    values.restore()
    assert [(bits(t), t.data_ptr(), t.stride(), t.dtype) for t in given] == before


def test_memory_that_was_given_back_meanwhile_is_taken_again(disk: Disk) -> None:
    for aside in (True, False):
        given = torch.randn(300)
        before = bits(given.clone())
        values = KeptTensors([given], aside=aside)
        given.untyped_storage().resize_(0)
        values.restore()
        assert bits(given) == before


@pytest.mark.parametrize("most", [1, 7, None])
def test_short_writes_and_reads_are_gone_on_with(disk: Disk, most: int | None) -> None:
    disk.most = most
    given = tensors()
    before = [bits(t) for t in given]
    values = KeptTensors(given, aside=True)
    spoil(given)
    values.restore()
    assert [bits(t) for t in given] == before


@pytest.mark.parametrize("reserved", [True, False])
@pytest.mark.parametrize("lasting", [True, False])
def test_no_failure_of_any_single_operation_changes_a_weight(
    disk: Disk, reserved: bool, lasting: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The n-th operation of each kind fails, for every n: once, or from then on; all while they are kept."""
    if not reserved:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    given = [t for t in tensors() if t.numel()]
    before = [bits(t) for t in given]
    KeptTensors(given, aside=True).restore()
    whole = dict(disk.counts)
    assert whole["write"] and whole["seek"] and whole["readinto"]
    tried = 0
    for operation in OPERATIONS:
        for number in range(1, whole[operation] + 1):
            disk.counts = dict.fromkeys(OPERATIONS, 0)
            disk.fails = lambda o, n, operation=operation, number=number: (
                o == operation and (n >= number if lasting else n == number)
            )
            values = KeptTensors(given, aside=True)
            kept_in_file = values._file is not None
            spoil(given)
            try:
                values.restore()
            except NotRestored:
                # Only what can be in no other place: a file that was read back whole, and is no longer read.
                assert lasting and kept_in_file and operation in ("seek", "readinto")
                disk.fails = lambda o, n: False
                values.restore()
            disk.fails = lambda o, n: False
            assert [bits(t) for t in given] == before, (operation, number)
            tried += 1
    assert tried > 20


def test_what_is_read_back_differently_is_kept_in_memory(disk: Disk) -> None:
    disk.garbles = True
    given = tensors()
    before = [bits(t) for t in given]
    values = KeptTensors(given, aside=True)
    assert values._file is None
    spoil(given)
    values.restore()
    assert [bits(t) for t in given] == before


def test_where_no_room_is_anywhere_nothing_is_begun(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    disk.fails = lambda operation, number: operation == "disk_usage"
    monkeypatch.setattr(kept_tensors, "free_memory", lambda root: 100)
    with pytest.raises(Unavailable, match="neither the folder for temporary files nor the memory has room"):
        KeptTensors(tensors(), aside=True)


def test_one_unreadable_tensor_costs_no_other_and_is_named(disk: Disk) -> None:
    model = nn.Sequential(nn.Linear(300, 4), nn.Linear(4, 300), nn.Linear(5, 5))
    given = list(model.parameters())
    before = [bits(t) for t in given]
    values = KeptTensors(given, aside=True, owner=model)
    spoil(given)
    disk.error = errno.EIO
    disk.counts = dict.fromkeys(OPERATIONS, 0)
    disk.fails = lambda operation, number: operation == "readinto" and number in (5, 6)  # and its second try
    with pytest.raises(
        NotRestored, match=r"1 tensor could not be put back \(Input/output error\): 1.weight;"
    ):
        values.restore()
    assert [bits(t) == b for t, b in zip(given, before, strict=True)] == [True, True, False, True, True, True]
    disk.fails = lambda operation, number: False
    values.restore()
    assert [bits(t) for t in given] == before


def test_an_interrupted_return_can_be_made_again(disk: Disk) -> None:
    given = [torch.randn(600) for _ in range(4)]
    before = [bits(t) for t in given]
    values = KeptTensors(given, aside=True)
    spoil(given)

    def interrupted(operation: str, number: int) -> bool:
        if operation == "readinto":
            raise KeyboardInterrupt
        return False

    def later(operation: str, number: int) -> bool:
        return operation == "readinto" and number > first + 2 and interrupted(operation, number)

    first = disk.counts["readinto"]
    for fails in (interrupted, later):
        disk.fails = fails
        with pytest.raises(KeyboardInterrupt):
            values.restore()
        assert values._kept
    disk.fails = lambda operation, number: False
    values.restore()
    assert [bits(t) for t in given] == before


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision_encoder = nn.Linear(8, 16)
        self.lm_head = nn.Linear(16, 4)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> Any:
        logits = self.lm_head(self.vision_encoder(pixel_values))
        return {"loss": nn.functional.cross_entropy(logits, labels)}


def subject() -> tuple[nn.Module, dict[str, torch.Tensor], torch.optim.Optimizer]:
    model = Tiny()
    batch = {"pixel_values": torch.randn(4, 8), "labels": torch.arange(4)}
    return model, batch, torch.optim.AdamW(model.parameters(), lr=1e-2)


RULES = ["loss-not-falling", "weight-not-moving"]


@pytest.mark.parametrize("operation", ["seek", "write", "disk_usage"])
def test_a_check_on_a_failing_disk_changes_no_weight(disk: Disk, operation: str) -> None:
    model, batch, optimizer = subject()
    before = [bits(p) for p in model.parameters()]
    vlmdoctor.check(model, batch, optimizer=optimizer)
    whole = disk.counts[operation]
    assert whole
    for number in range(1, whole + 1):
        disk.counts = dict.fromkeys(OPERATIONS, 0)
        # Once it is full, it stays full.
        disk.fails = lambda o, n, number=number: o == operation and n >= number
        try:
            vlmdoctor.check(model, batch, optimizer=optimizer, select=["loss-not-falling"])
        except NotRestored as lost:
            assert operation == "seek" and "vision_encoder" in str(lost) + "lm_head"
            model, batch, optimizer = subject()
        assert [bits(p) for p in model.parameters()] == before


def test_lost_weights_are_never_a_probe_that_failed(disk: Disk) -> None:
    model, batch, optimizer = subject()
    gradient = model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    state = torch.get_rng_state()
    steps = len(list(model.parameters()))
    disk.error = errno.EIO
    disk.fails = lambda operation, number: operation == "readinto" and number > steps
    with pytest.raises(NotRestored, match=r"4 tensors could not be put back .*vision_encoder.weight, "):
        vlmdoctor.check(model, batch, optimizer=optimizer)
    # All else is as it was.
    assert model.lm_head.weight.grad is gradient
    assert torch.equal(torch.get_rng_state(), state)


LIMITED = """
import resource, sys, zlib
import torch
from torch import nn
import vlmdoctor
from vlmdoctor.sandbox import kept_tensors as kept, kept_file

what, limit = sys.argv[1], int(sys.argv[2])
kept.IN_MEMORY = 1 << 20

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.vision_encoder = nn.Linear(8, 16)
        self.embed = nn.Embedding(400_000, 16)
        self.lm_head = nn.Linear(16, 4)

    def forward(self, pixel_values, labels):
        x = self.vision_encoder(pixel_values) + self.embed(labels)
        return {"loss": nn.functional.cross_entropy(self.lm_head(x), labels)}

torch.manual_seed(0)
model = Model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
batch = {"pixel_values": torch.randn(4, 8), "labels": torch.arange(4)}
before = [zlib.crc32(p.detach().numpy()) for p in model.parameters()]
model(**batch)["loss"].backward()
optimizer.zero_grad()
if what == "file":
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
else:
    now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + limit, now + limit))
    kept_file.folders = lambda: []
try:
    kept_now = kept.KeptTensors(list(model.parameters()), aside=True)
except vlmdoctor.errors.Unavailable as reason:
    print("unavailable:", reason)
else:
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    kept_now.restore()
    print("file" if kept_now._file else "kept")
assert before == [zlib.crc32(p.detach().numpy()) for p in model.parameters()]
report = vlmdoctor.check(model, batch, optimizer=optimizer, select=["loss-not-falling"])
assert before == [zlib.crc32(p.detach().numpy()) for p in model.parameters()]
print(report.ran, report.skipped, report.crashed)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of the operating system")
@pytest.mark.parametrize(
    ("what", "limit", "words"),
    [("file", 0, "kept"), ("file", 1 << 20, "kept"), ("memory", 8 << 20, "unavailable: 24 MiB of weights")],
)
def test_limits_on_files_and_memory_change_no_weight(
    tmp_path: Path, what: str, limit: int, words: str
) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["MALLOC_MMAP_THRESHOLD_"] = "65536"  # what was freed does not count as room
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, what, str(limit)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert words in done.stdout


LOSES = """
import torch
from torch import nn
from vlmdoctor.sandbox import kept_tensors as kept, kept_file

def fill(*_):
    raise OSError(5, "Input/output error")

def build():
    kept.IN_MEMORY = 0
    kept_file.folders = lambda: ["."]
    kept_file.KeptFile.fill = fill
    model = nn.Sequential(nn.Linear(8, 4))
    model.forward = lambda x: {"loss": model[0](x).square().mean()}
    return model, {"x": torch.ones(2, 8)}, torch.optim.SGD(model.parameters(), lr=0.1)
"""


def test_the_command_says_which_weights_are_lost_and_ends_with_status_2(tmp_path: Path) -> None:
    (tmp_path / "loses.py").write_text(LOSES)
    done = subprocess.run(
        [sys.executable, "-m", "vlmdoctor", "check", "loses.py:build"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 2 and done.stdout == ""
    (said,) = done.stderr.splitlines()
    assert said == (
        "vlmdoctor: the values of 2 tensors could not be put back (Input/output error): 0.weight, 0.bias; "
        "load the weights again before the model is used."
    )


def test_folders_in_memory_are_no_disks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(kept_file, "in_memory", lambda folder: True)
    assert kept_file.folders() == []
    monkeypatch.setattr(kept_file, "in_memory", lambda folder: folder == tmp_path)
    assert kept_file.folders() == []  # it was chosen
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    assert kept_file.folders() == ([Path("/var/tmp")] if os.name == "posix" else [])


@pytest.mark.skipif(not Path("/proc/self/mountinfo").exists(), reason="no table of mounts")
def test_the_table_of_mounts_tells_what_is_in_memory() -> None:
    rows = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    kinds = {row[4]: row[row.index("-") + 1] for row in rows}
    for place, kind in kinds.items():
        if kind in ("tmpfs", "proc"):
            assert kept_file.in_memory(Path(place)) is (kind == "tmpfs")
