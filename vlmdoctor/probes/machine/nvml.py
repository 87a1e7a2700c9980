"""Asking the driver's management library, in a process that can be killed: it may hang, or crash."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmdoctor.errors import UserError
from vlmdoctor.evidence.environment import Environment
from vlmdoctor.evidence.environment.facts import Gpu, Nvml
from vlmdoctor.probes.machine import devices

# Without persistence mode the first question wakes every GPU up, which takes seconds for each.
TIMEOUT = 30.0
_NOTABLE = 1024**3


class Question:
    """NVML being asked; `answer` waits for it. Nothing is asked where there is no sign of the driver.

    As a context it takes care that no child outlives it: one that hangs would otherwise stay for good.
    """

    def __init__(
        self,
        environ: Mapping[str, str] | None = None,
        site: Sequence[str] | None = None,
        root: Path = Path("/"),
    ) -> None:
        environ = os.environ if environ is None else environ
        self._process = None
        if sys.platform == "win32" or devices.management_library(root, environ):
            self._process = start(
                "nvml_child.py", environ, _with_bindings(sys.path if site is None else site)
            )

    def __enter__(self) -> Question:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.kill()

    def answer(self, seconds: float = TIMEOUT) -> tuple[Nvml, tuple[Gpu, ...], str | None]:
        """What NVML says: its state, the GPUs, and the driver's version."""
        if self._process is None:
            return Nvml(state="absent", reason="there is no libnvidia-ml.so.1"), (), None
        state, said = finish(self._process, seconds)
        if state != "answered":
            return (
                Nvml(state=state, reason=f"it {'did not answer' if state == 'hung' else 'crashed'}"),
                (),
                None,
            )
        return understood(said)


def understood(said: object) -> tuple[Nvml, tuple[Gpu, ...], str | None]:
    """The child's answer as facts."""
    from vlmdoctor.probes.machine.saved import built

    if not isinstance(said, dict):
        return Nvml(state="crashed", reason="it gave no answer"), (), None
    try:
        nvml = built(Nvml, said.get("nvml", {}))
        gpus = built(tuple[Gpu, ...], said.get("gpus", []))
    except UserError:
        return Nvml(state="crashed", reason="its answer makes no sense"), (), None
    version = said.get("driver")
    return nvml, gpus, version if isinstance(version, str) else None


def merged(
    environment: Environment, answer: tuple[Nvml, tuple[Gpu, ...], str | None], root: Path = Path("/")
) -> Environment:
    """The snapshot with what NVML said; its GPUs are better known than those from files.

    Where memory is in use and NVML names nobody who uses it, as in a container, open device files may.
    """
    nvml, gpus, version = answer
    if any((gpu.used or 0) > _NOTABLE and not gpu.processes for gpu in gpus):
        from vlmdoctor.probes.machine.driver_traces import holders

        held = holders(root, gpus)
        gpus = tuple(
            dataclasses.replace(gpu, processes=held[index]) if index in held and not gpu.processes else gpu
            for index, gpu in enumerate(gpus)
        )
    driver = environment.driver
    if version is not None:
        from vlmdoctor.evidence.environment.facts import Driver

        driver = dataclasses.replace(driver or Driver(), version=(driver and driver.version) or version)
    unseen = {name: reason for name, reason in environment.unseen.items() if name != "nvml"}
    if nvml.state != "answered":
        unseen["nvml"] = _reason(nvml)
    return dataclasses.replace(
        environment, nvml=nvml, gpus=gpus or environment.gpus, driver=driver, unseen=unseen
    )


def _reason(nvml: Nvml) -> str:
    if nvml.state == "absent":
        return "there is no NVIDIA driver to ask (NVML)"
    return f"the NVIDIA driver could not be asked (NVML): {nvml.reason}"


def _with_bindings(site: Sequence[str]) -> str | None:
    """The folder that holds pynvml; the child gets this one alone, so that it imports nothing else."""
    return next((str(entry) for entry in site if entry and Path(entry, "pynvml.py").is_file()), None)


def start(script: str, environ: Mapping[str, str], *arguments: str | None) -> subprocess.Popen[bytes]:
    """A child Python that runs one of the scripts beside this file, free of the user's own packages."""
    path = Path(__file__).with_name(script)
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(path), *(argument or "" for argument in arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=dict(environ),
        start_new_session=True,
    )


def finish(process: subprocess.Popen[bytes], seconds: float) -> tuple[str, object]:
    """(`answered`, what it said), or `hung` or `crashed`; no child is left waiting."""
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        try:
            process.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            # Stuck in the kernel: it can't be killed and must not be waited for.
            if process.stdout is not None:
                process.stdout.close()
        return "hung", None
    if process.returncode != 0:
        return "crashed", None
    try:
        return "answered", json.loads(output.decode("utf-8", errors="replace").strip().splitlines()[-1])
    except (ValueError, IndexError, RecursionError):
        return "crashed", None
