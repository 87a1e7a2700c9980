"""The machine in sections, as `flutter doctor` shows it: a mark, a word, and one line on each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmdoctor.evidence.environment import Environment, Gpu
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.knowledge.visible_devices import VARIABLE, read
from vlmdoctor.plain_text import plain_line

if TYPE_CHECKING:
    from vlmdoctor.evidence.source import Source

GIB = 1024**3
MARKS = {
    None: ("[✓]", "ok", "green"),
    Severity.INFO: ("[✓]", "note", "green"),
    Severity.WARNING: ("[!]", "warning", "yellow"),
    Severity.ERROR: ("[✗]", "error", "red"),
}
UNKNOWN = ("[?]", "not known", "dim")


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        title: Its name.
        codes: Prefixes of the codes of the rules that belong to it.
        line: What there is, in one line.
        details: More lines, for `-v`.
        known: Whether anything is known about it at all.
    """

    title: str
    codes: tuple[str, ...]
    line: str
    details: tuple[str, ...] = ()
    known: bool = True

    def __post_init__(self) -> None:
        # Variables, names of packages and paths are whatever others made them.
        object.__setattr__(self, "line", plain_line(self.line))
        object.__setattr__(self, "details", tuple(map(plain_line, self.details)))

    def mark(self, findings: Iterable[Finding]) -> tuple[str, str, str]:
        """(mark, word, colour) by the worst finding that belongs here."""
        own = [finding.severity for finding in findings if finding.code.startswith(self.codes)]
        if not own and not self.known:
            return UNKNOWN
        return MARKS[max(own, key=lambda severity: severity.rank, default=None)]


def static_sections(environment: Environment) -> Iterator[Section]:
    """What files alone say, at once."""
    yield Section("Python and packages", ("ENV3",), *_packages(environment))
    yield Section("Machine", ("ENV5",), *_machine(environment))


def device_sections(environment: Environment) -> Iterator[Section]:
    """What the driver had to be asked for."""
    yield Section("GPUs and driver", ("ENV2",), *_devices(environment))
    yield Section("Which GPUs torch sees", ("ENV1",), *_visible(environment))
    yield Section("Environment variables", ("ENV4",), *_variables(environment))


def source_section(source: Source) -> Section:
    """What the files given say."""
    files = "1 file" if source.files == 1 else f"{source.files} files"
    unread = f", {len(source.unread)} of them unreadable" if source.unread else ""
    details = tuple(f"{file}: {reason}" for file, reason in source.unread)
    return Section(
        "Sources", ("SRC",), f"{files} searched for what hides the GPUs or comes too late{unread}", details
    )


def _packages(environment: Environment) -> tuple[str, tuple[str, ...], bool]:
    if "packages" in environment.unseen and not environment.packages:
        return environment.unseen["packages"], (), False
    torch = environment.torch
    system = f" on {environment.platform}" if environment.platform else ""
    python = f"Python {environment.python}{system}" if environment.python else ""
    if torch is None or not torch.version:
        line = "torch is not installed"
    else:
        kinds = (("CUDA", torch.cuda), ("ROCm", torch.hip), ("XPU", torch.xpu))
        built = next((f"for {name} {version}" for name, version in kinds if version), "for the CPU")
        line = f"torch {torch.version} (built {built})"
    main = ("transformers", "torchvision", "accelerate", "peft", "numpy", "deepspeed", "flash-attn")
    others = [f"{name} {version}" for name, version in environment.packages.items() if name in main]
    details = [f"{name} {version}" for name, version in environment.packages.items()]
    if torch is not None and torch.archs:
        details.append(f"torch holds code for {' '.join(torch.archs)}")
    return ", ".join(part for part in (python, line, *others) if part), tuple(details), True


def _machine(environment: Environment) -> tuple[str, tuple[str, ...], bool]:
    host = environment.host
    if host is None:
        return environment.unseen.get("host", "not looked at"), (), False
    parts = [_count(host.cpus, "core")]
    if host.quota is not None:
        parts.append(f"time of {host.quota:g}")
    if host.memory is not None:
        free = f"{host.available / GIB:.0f} of " if host.available is not None else ""
        parts.append(f"{free}{host.memory / GIB:.0f} GiB memory free")
    work = next((folder for folder in host.folders if folder.use == "work" and folder.free is not None), None)
    if work is not None and work.free is not None:
        parts.append(f"{work.free / GIB:.0f} GiB disk free")
    if host.shm is not None:
        parts.append(f"/dev/shm {host.shm / GIB:.1f} GiB")
    if environment.container is not None:
        parts.append(f"inside {environment.container}")
    details = [
        f"{folder.use}: {folder.path} on the disk of {folder.resolved}, {folder.free / GIB:.1f} GiB free"
        for folder in host.folders
        if folder.free is not None
    ]
    if host.open_files is not None:
        details.append(f"open files: at most {host.open_files}")
    if environment.kernel:
        details.append(f"kernel {environment.kernel}")
    return ", ".join(parts), tuple(details), True


def _devices(environment: Environment) -> tuple[str, tuple[str, ...], bool]:
    if not environment.gpus:
        if "gpus" in environment.unseen:
            return environment.unseen["gpus"], (), False
        if environment.other_accelerator:
            return (
                f"no NVIDIA GPU here, but {environment.other_accelerator}, which is examined in part only",
                (),
                True,
            )
        there = [gpu for gpu in environment.pci or () if gpu.vendor == "nvidia" and gpu.driver != "vfio-pci"]
        if there:
            where = (
                "in the host, none of them in this container" if environment.container else "on the PCI bus"
            )
            return f"{_count(len(there), 'NVIDIA GPU')} {where}: training runs on the CPU", (), True
        return "no GPU here: training runs on the CPU", (), True
    models: dict[str, int] = {}
    for gpu in environment.gpus:
        models[_model(gpu)] = models.get(_model(gpu), 0) + 1
    line = ", ".join(f"{count} × {model}" if count > 1 else model for model, count in models.items())
    if environment.driver is not None and environment.driver.version:
        line += f"; driver {environment.driver.version}"
        if environment.nvml is not None and environment.nvml.cuda:
            line += f" (up to CUDA {environment.nvml.cuda})"
    details = [_detail(index, gpu) for index, gpu in enumerate(environment.gpus)]
    if environment.live is not None and environment.live.state == "answered":
        seen = environment.live.devices
        details.append("CUDA starts" + (f" and sees {_count(seen, 'GPU')}" if seen is not None else ""))
    return line, tuple(details), True


def _model(gpu: Gpu) -> str:
    return f"{gpu.name} {gpu.memory / GIB:.0f} GiB" if gpu.memory else gpu.name


def _detail(index: int, gpu: Gpu) -> str:
    parts = [f"GPU {index}: {_model(gpu)}"]
    if gpu.capability:
        parts.append(f"compute capability {'.'.join(map(str, gpu.capability))}")
    if gpu.used is not None:
        parts.append(f"{gpu.used / GIB:.1f} GiB used")
    if gpu.link_width:
        parts.append(f"{gpu.link_width} PCIe lanes")
    if gpu.nvlinks:
        parts.append(_count(gpu.nvlinks, "NVLink"))
    return ", ".join(parts)


def _visible(environment: Environment) -> tuple[str, tuple[str, ...], bool]:
    if "variables" in environment.unseen:
        return environment.unseen["variables"], (), False
    value = environment.variables.get(VARIABLE)
    count = len(environment.gpus)
    usable = environment.torch is not None and (environment.torch.cuda or environment.torch.hip)
    if value is None:
        line = f"{VARIABLE} is not set: all" if count else f"{VARIABLE} is not set, and there is no GPU"
        if count and not usable:
            line = f"none: torch is built for the CPU ({VARIABLE} is not set)"
        return line, (), True
    reading = read(value, count, [gpu.uuid or "" for gpu in environment.gpus])
    seen = "torch raises ValueError" if reading.crashes else "MIG instances: CUDA decides"
    if not reading.crashes and reading.visible is not None:
        numbers = ", ".join(map(str, reading.visible))
        seen = f"torch sees {_count(len(reading.visible), 'GPU')}{f' (number {numbers})' if numbers else ''}"
    return (
        f'{VARIABLE} is "{value}": {seen} of {count}',
        tuple(f"'{entry.text}': {entry.fate}" for entry in reading.entries),
        True,
    )


def _variables(environment: Environment) -> tuple[str, tuple[str, ...], bool]:
    if "variables" in environment.unseen:
        return environment.unseen["variables"], (), False
    names = list(environment.variables)
    if not names:
        return "none that matters to training is set", (), True
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    details = tuple(f"{name}={value}" for name, value in environment.variables.items())
    return f"{len(names)} that may matter: {shown}", details, True


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
