"""The machine as seen without importing torch and without touching CUDA in this process: one snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.environment.facts import (
    Driver,
    Extension,
    Folder,
    Gpu,
    Host,
    Library,
    Live,
    Mps,
    Nvml,
    PciGpu,
    Process,
    Torch,
    Xid,
)
from vlmdoctor.knowledge.kept_variables import VARIABLES

DEPTH = "static"
PROBE = "vlmdoctor.probes.machine.snapshot"

__all__ = [
    "DEPTH",
    "PROBE",
    "VARIABLES",
    "Driver",
    "Environment",
    "Extension",
    "Folder",
    "Gpu",
    "Host",
    "Library",
    "Live",
    "Mps",
    "Nvml",
    "PciGpu",
    "Process",
    "Torch",
    "Xid",
]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """A snapshot of the machine. What is None was not seen, and `unseen` may tell why.

    Attributes:
        origin: Where it comes from, in words: `this machine`, `a report of torch's collect_env` and so on.
        python: Version of Python.
        platform: Operating system and processor, such as `Linux x86_64`.
        kernel: Release of the operating system's kernel.
        container: `docker`, `kubernetes`, `apptainer`, `wsl` or `colab`; None on a plain machine.
        variables: Environment variables that matter to training; secrets are never kept.
        packages: Installed package -> version, torch's with its build (`2.13.0+cpu`).
        requires: Package -> what it says it needs of the other packages looked at.
        torch: The installed torch; None without one.
        gpus: NVIDIA GPUs.
        pci: Display controllers on the PCI bus; None where it can't be read.
        driver: The NVIDIA driver; None without one.
        nvml: What became of asking the driver.
        live: What became of starting CUDA (`--live`).
        xids: Errors of GPUs in the kernel's log; empty as well where it can't be read.
        mps: The multi-process service that the variables ask for; None without one.
        libraries: Shared libraries that shadow those of torch.
        extensions: Compiled extensions of torch.
        openmp: Files of OpenMP runtimes other than torch's own.
        accelerate_cpu: The accelerate configuration that forces the CPU, if there is one.
        host: What the machine allows; None where a report does not tell it.
        other_accelerator: An accelerator of another maker, in words; None without one.
        unseen: Field -> why it is not known.
    """

    origin: str = "this machine"
    python: str = ""
    platform: str = ""
    kernel: str | None = None
    container: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    requires: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    torch: Torch | None = None
    gpus: tuple[Gpu, ...] = ()
    pci: tuple[PciGpu, ...] | None = None
    driver: Driver | None = None
    nvml: Nvml | None = None
    live: Live | None = None
    xids: tuple[Xid, ...] = ()
    mps: Mps | None = None
    libraries: tuple[Library, ...] = ()
    extensions: tuple[Extension, ...] = ()
    openmp: tuple[str, ...] = ()
    accelerate_cpu: str | None = None
    host: Host | None = None
    other_accelerator: str | None = None
    unseen: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The models of the GPUs."""
        return tuple(gpu.name for gpu in self.gpus)

    @property
    def cpus(self) -> int:
        """Processors that this process may run on."""
        return self.host.cpus if self.host is not None else 1

    @property
    def torch_cuda(self) -> str | None:
        """The CUDA version that torch was built for."""
        return self.torch.cuda if self.torch is not None else None

    def need(self, *fields: str) -> None:
        """Raises `Unavailable`, so that a rule is skipped with the reason, where a field was not seen."""
        for name in fields:
            if name in self.unseen:
                raise Unavailable(self.unseen[name])
