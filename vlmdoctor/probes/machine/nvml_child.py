"""Run in a process of its own by `nvml.py`: asks NVML everything and prints one line of JSON.

argv[1] is the folder that holds nvidia-ml-py. What one GPU does not support is left out, never guessed.
"""

import json
import sys
from pathlib import Path

THROTTLES = {
    0x1: "idle",
    0x4: "power-cap",
    0x8: "slowdown",
    0x20: "thermal",
    0x40: "thermal",
    0x80: "power-brake",
}
FABRIC = {1: "not-started", 2: "in-progress", 3: "completed"}
MODES = {0: "default", 1: "exclusive", 2: "prohibited", 3: "exclusive"}


def asked(function, *arguments):
    """What NVML answers, or None where it does not."""
    try:
        return function(*arguments)
    except Exception:
        return None


def said(error):
    """The text of an exception, or its type where it has none; the parent makes it plain."""
    return asked(str, error) or type(error).__name__


def text(value):
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def mig_devices(n, handle):
    found = []
    for i in range(asked(n.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        device = asked(n.nvmlDeviceGetMigDeviceHandleByIndex, handle, i)
        uuid = device is not None and asked(n.nvmlDeviceGetUUID, device)
        if uuid:
            found.append(text(uuid))
    return found


def fabric(n, handle):
    info = n.c_nvmlGpuFabricInfoV_t()
    info.version = n.nvmlGpuFabricInfo_v2
    if asked(n.nvmlDeviceGetGpuFabricInfoV, handle, n.byref(info)) is None:
        return None
    return FABRIC.get(info.state)


def nvlinks(n, handle):
    states = [asked(n.nvmlDeviceGetNvLinkState, handle, link) for link in range(18)]
    known = [state for state in states if state is not None]
    return sum(known) if known else None


def gpu(n, handle):
    memory = asked(n.nvmlDeviceGetMemoryInfo, handle)
    running = asked(n.nvmlDeviceGetComputeRunningProcesses, handle)
    remapped = asked(n.nvmlDeviceGetRemappedRows, handle)
    reasons = asked(n.nvmlDeviceGetCurrentClocksEventReasons, handle)
    if reasons is None:
        reasons = asked(n.nvmlDeviceGetCurrentClocksThrottleReasons, handle) or 0
    mig = asked(n.nvmlDeviceGetMigMode, handle)
    bus = asked(n.nvmlDeviceGetPciInfo, handle)
    found = {
        "name": text(asked(n.nvmlDeviceGetName, handle)),
        "uuid": text(asked(n.nvmlDeviceGetUUID, handle)),
        "bus": text(bus.busId) if bus else None,
        "capability": asked(n.nvmlDeviceGetCudaComputeCapability, handle),
        "memory": memory.total if memory else None,
        "used": memory.used if memory else None,
        "compute_mode": MODES.get(asked(n.nvmlDeviceGetComputeMode, handle)),
        "mig": bool(mig[0]) if mig else None,
        "mig_devices": mig_devices(n, handle) if mig and mig[0] else [],
        "ecc_uncorrected": asked(n.nvmlDeviceGetTotalEccErrors, handle, 1, 0),
        "remap_pending": bool(remapped[2]) if remapped else None,
        "remap_failed": bool(remapped[3]) if remapped else None,
        "throttle": sorted({word for bit, word in THROTTLES.items() if reasons & bit}),
        "fabric": asked(fabric, n, handle),
        "nvlinks": nvlinks(n, handle),
        "link_width": asked(n.nvmlDeviceGetCurrPcieLinkWidth, handle),
        "link_width_max": asked(n.nvmlDeviceGetMaxPcieLinkWidth, handle),
    }
    if running is not None:
        found["processes"] = [
            {"pid": p.pid, "name": name_of(p.pid), "memory": p.usedGpuMemory} for p in running
        ]
    return {name: value for name, value in found.items() if value is not None}


def name_of(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def main():
    if len(sys.argv) > 1 and sys.argv[1]:
        sys.path.append(sys.argv[1])
    try:
        import pynvml as n
    except Exception as error:
        return {"nvml": {"state": "absent", "reason": f"nvidia-ml-py can't be imported ({said(error)})"}}
    try:
        n.nvmlInit()
        count = n.nvmlDeviceGetCount()
    except n.NVMLError as error:
        return {"nvml": {"state": "refused", "code": error.value, "reason": said(error)}}
    gpus = []
    for i in range(count):
        try:
            gpus.append(gpu(n, n.nvmlDeviceGetHandleByIndex(i)))
        except n.NVMLError as error:
            # 15: the GPU is lost; any other refusal tells nothing about the GPU itself.
            gpus.append({"lost": error.value in (15, 999)})
    cuda = asked(n.nvmlSystemGetCudaDriverVersion)
    return {
        "nvml": {
            "state": "answered",
            "cuda": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        },
        "driver": text(asked(n.nvmlSystemGetDriverVersion)),
        "gpus": gpus,
    }


if __name__ == "__main__":
    print(json.dumps(main()))
