"""The parts of a snapshot: plain values, each None where it is not known."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Torch:
    """The installed torch, as its files tell it.

    Attributes:
        version: With the build, such as `2.13.0+cu130`.
        cuda, hip, xpu: What it was built for; None where it was built without.
        archs: GPU architectures that it holds code for (`sm_90`); None where they could not be read.
        folder: Where it is.
        recorded: Versions in the metadata beside it: more than one where an install went over another.
        shadow: A file or folder of the user's own that is imported instead of it.
    """

    version: str = ""
    cuda: str | None = None
    hip: str | None = None
    xpu: str | None = None
    archs: tuple[str, ...] | None = None
    folder: str | None = None
    recorded: tuple[str, ...] = ()
    shadow: str | None = None

    @property
    def release(self) -> str:
        """The version without the build."""
        return self.version.partition("+")[0]


@dataclass(frozen=True, kw_only=True)
class Process:
    """A program that uses a GPU; `memory` in bytes."""

    pid: int = 0
    name: str = ""
    memory: int | None = None


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One NVIDIA GPU, in the order of the PCI bus, which is that of nvidia-smi.

    Attributes:
        name: The model.
        uuid, bus: Its identity and its place on the PCI bus.
        capability: Compute capability, (9, 0) for Hopper.
        memory, used: Bytes.
        processes: Programs that use it; None where they are not listed.
        compute_mode: `default`, `exclusive` or `prohibited`.
        mig: Whether it is split into MIG instances; `mig_devices` are the UUIDs of these.
        ecc_uncorrected: Memory errors since the driver was loaded that could not be corrected.
        remap_pending, remap_failed: Whether memory rows wait to be remapped, or could not be.
        throttle: Why the clocks are held down: `idle`, `power-cap`, `slowdown`, `thermal`, `power-brake`.
        fabric: `not-started`, `in-progress` or `completed`; None without an NVLink fabric.
        nvlinks: How many NVLinks are up.
        link_width, link_width_max: PCIe lanes in use and possible.
        lost: Whether the driver no longer reaches it.
    """

    name: str = "NVIDIA GPU"
    uuid: str | None = None
    bus: str | None = None
    capability: tuple[int, ...] | None = None
    memory: int | None = None
    used: int | None = None
    processes: tuple[Process, ...] | None = None
    compute_mode: str | None = None
    mig: bool | None = None
    mig_devices: tuple[str, ...] = ()
    ecc_uncorrected: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    throttle: tuple[str, ...] = ()
    fabric: str | None = None
    nvlinks: int | None = None
    link_width: int | None = None
    link_width_max: int | None = None
    lost: bool = False


@dataclass(frozen=True, kw_only=True)
class PciGpu:
    """A display controller on the PCI bus.

    Attributes:
        bus: Its place.
        vendor: `nvidia`, `amd` or `intel`.
        driver: The kernel driver that holds it, such as `nvidia`, `nouveau` or `vfio-pci`.
        iommu: How its memory accesses are translated: `identity` (not at all), `DMA`, `DMA-FQ`.
    """

    bus: str = ""
    vendor: str = ""
    driver: str | None = None
    iommu: str | None = None


@dataclass(frozen=True, kw_only=True)
class Driver:
    """The NVIDIA driver.

    Attributes:
        version: Of the kernel module that is loaded, such as `580.65.06`.
        user_version: Of the libcuda.so.1 that programs load.
        libcuda: Where that library is, links resolved.
        nodes: Device files, such as `nvidia0`, `nvidiactl`, `nvidia-uvm`.
        modules: Kernel modules loaded, as far as /proc/modules shows them.
        fabric_manager: Whether the fabric manager runs; None where processes can't be seen.
    """

    version: str | None = None
    user_version: str | None = None
    libcuda: str | None = None
    nodes: tuple[str, ...] | None = None
    modules: tuple[str, ...] = ()
    fabric_manager: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Nvml:
    """What became of asking the driver's management library.

    Attributes:
        state: `answered`, `refused` (with `code` and `reason`), `hung`, `crashed` or `absent`.
        code: NVML's return code, such as 18 for a version mismatch.
        reason: In words.
        cuda: The newest CUDA version that the driver can do, such as `13.0`.
    """

    state: str = "answered"
    code: int | None = None
    reason: str = ""
    cuda: str | None = None


@dataclass(frozen=True, kw_only=True)
class Live:
    """What `cuInit` said in a process of its own, or, in a report, what torch said.

    Attributes:
        state: `answered`, `refused`, `hung`, `crashed` or `absent`.
        code: The code of the CUDA driver, such as 803.
        devices: How many GPUs CUDA sees.
        by_torch: Whether it is the word of torch, `torch.cuda.is_available()`, and not the driver's.
    """

    state: str = "answered"
    code: int | None = None
    devices: int | None = None
    by_torch: bool = False


@dataclass(frozen=True, kw_only=True)
class Xid:
    """An error that the driver wrote into the kernel's log.

    Attributes:
        code: Such as 79.
        bus: The GPU's place on the PCI bus.
        text: What it says.
    """

    code: int = 0
    bus: str = ""
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class Mps:
    """NVIDIA's multi-process service, as CUDA_MPS_PIPE_DIRECTORY names it.

    Attributes:
        folder: The folder that the variable names.
        control: Whether the daemon's socket lies there.
        daemon: Whether the daemon runs; None where processes can't be seen.
    """

    folder: str = ""
    control: bool = False
    daemon: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Library:
    """A shared library of CUDA that a program would load instead of the one that torch brought.

    Attributes:
        name: Such as `libcudnn.so.9`.
        path: Where it is.
        version: As the file's name tells it.
        wheel: The version that the wheels brought.
        by: `LD_LIBRARY_PATH` or `system`.
    """

    name: str = ""
    path: str = ""
    version: str | None = None
    wheel: str | None = None
    by: str = "LD_LIBRARY_PATH"


@dataclass(frozen=True, kw_only=True)
class Extension:
    """A compiled extension of torch.

    Attributes:
        package: Such as `flash-attn`.
        version: Installed version.
        torch: The torch it says that it was built for; None where it does not say.
        cuda: The CUDA that it was built for, such as `12.8`.
        missing: C++ symbols that it needs and the installed torch does not have.
        cuda_files: For bitsandbytes: the CUDA versions that it has libraries for.
    """

    package: str = ""
    version: str = ""
    torch: str | None = None
    cuda: str | None = None
    missing: tuple[str, ...] = ()
    cuda_files: tuple[str, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Folder:
    """A folder that training writes to.

    Attributes:
        use: `work`, `hub cache`, `temporary files` and so on.
        path: As configured; `resolved` is the existing folder on whose disk it lies.
        free, total: Bytes.
        inodes: Free inodes; None where the file system does not count them.
        writable: Whether this user may write there.
    """

    use: str = ""
    path: str = ""
    resolved: str = ""
    free: int | None = None
    total: int | None = None
    inodes: int | None = None
    writable: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Host:
    """What the machine, or the container, allows.

    Attributes:
        cpus: Processors that this process may run on.
        quota: Processors' worth of time that the control group allows; None without a limit.
        memory, available: Bytes, control group limits included.
        shm, shm_free: Size of /dev/shm in bytes.
        open_files: Soft limit of open files; `open_files_hard` how far it can be raised.
        python_headers, compiler, nvcc: Whether extensions can be compiled.
        folders: Where training writes.
    """

    cpus: int = 1
    quota: float | None = None
    memory: int | None = None
    available: int | None = None
    shm: int | None = None
    shm_free: int | None = None
    open_files: int | None = None
    open_files_hard: int | None = None
    compiler: bool | None = None
    nvcc: bool | None = None
    python_headers: bool | None = None
    folders: tuple[Folder, ...] = ()
