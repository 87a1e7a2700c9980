"""The machine as seen without importing torch and without touching CUDA in this process: one snapshot."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.knowledge.kept_variables import kept_variables


def probe(subject: object, gather: Callable[[type], object]) -> Environment:
    """This machine's snapshot."""
    return snapshot()


def _here() -> Path | None:
    try:
        return Path.cwd()
    except OSError:
        return None  # it was deleted


def snapshot(
    root: Path = Path("/"),
    environ: Mapping[str, str] | None = None,
    site: Sequence[str] | None = None,
    work: Path | None = None,
) -> Environment:
    """Reads what files tell: the machine under `root`, variables `environ`, packages in the folders `site`.

    The driver itself is asked by `vlmdoctor.probes.machine.nvml`, and CUDA by `.live`; both may take
    long, and this does not.
    """
    from vlmdoctor.probes.machine import devices, driver_traces, host, libraries, packages, torch_wheel

    environ = os.environ if environ is None else environ
    site = [entry or "." for entry in sys.path] if site is None else site
    found = packages.installed(site)
    torch = torch_wheel.read(site, found)
    versions = found.versions
    if torch is not None and torch.version:
        versions = {**versions, "torch": torch.version}
    container = devices.container(root, environ)
    contained = container not in (None, "wsl")
    driver = devices.driver(root, environ)
    return Environment(
        python=platform.python_version(),
        platform=f"{platform.system()} {platform.machine()}",
        kernel=platform.release() or None,
        container=container,
        variables=kept_variables(environ),
        packages=versions,
        requires=found.requires,
        torch=torch,
        gpus=devices.gpus(root, contained),
        pci=devices.pci(root),
        driver=driver,
        xids=driver_traces.xids(root) if driver is not None else (),
        mps=driver_traces.mps(root, environ, contained),
        libraries=libraries.shadowing(root, environ, site),
        extensions=libraries.extensions(site, found, torch),
        openmp=libraries.openmp(site),
        accelerate_cpu=packages.accelerate_on_cpu(root, environ),
        host=host.read(root, environ, work or _here()),
        other_accelerator=devices.other_accelerator(root),
        unseen={"nvml": "the driver was not asked", "live": "CUDA was not started (--live does that)"},
    )
