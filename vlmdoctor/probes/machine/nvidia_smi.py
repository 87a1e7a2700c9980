"""The output of `nvidia-smi -q -x`."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from vlmdoctor.errors import UserError
from vlmdoctor.evidence.environment import Environment
from vlmdoctor.evidence.environment.facts import Driver, Gpu, Nvml, Process
from vlmdoctor.knowledge.gpu_capabilities import capability_of
from vlmdoctor.plain_text import first_line

NOT_SHOWN = "nvidia-smi does not show it"
_THROTTLES = {
    "gpu_idle": "idle",
    "sw_power_cap": "power-cap",
    "hw_slowdown": "slowdown",
    "hw_thermal_slowdown": "thermal",
    "sw_thermal_slowdown": "thermal",
    "hw_power_brake_slowdown": "power-brake",
}
_FABRIC = {"Completed": "completed", "In Progress": "in-progress", "Not Started": "not-started"}
_MODES = {"Default": "default", "Exclusive_Process": "exclusive", "Exclusive_Thread": "exclusive"}


def read(text: str, name: str) -> Environment:
    """The snapshot in the XML; raises `UserError` where it is not valid.

    Only GPUs and the driver are seen; everything else is named in `unseen`.
    """
    start, end = text.find("<nvidia_smi_log"), text.rfind("</nvidia_smi_log>")
    if end < 0:
        raise UserError(f"{name} is cut off: the end of nvidia-smi's XML is missing.")
    try:
        # From the root element on, so that a document type, and entities with it, is never looked at.
        log = ElementTree.fromstring(text[start:end] + "</nvidia_smi_log>")
    except ElementTree.ParseError as error:
        raise UserError(f"{name} is not valid XML ({first_line(error)}).") from None
    version = _text(log, "driver_version")
    hidden = ("torch", "packages", "requires", "variables", "libraries", "extensions", "openmp", "pci")
    unseen = dict.fromkeys((*hidden, "host", "live", "nodes", "archs", "accelerate_cpu"), NOT_SHOWN)
    return Environment(
        origin="the output of nvidia-smi",
        gpus=tuple(_gpu(element) for element in log.findall("gpu")),
        driver=Driver(version=version) if version else None,
        nvml=Nvml(cuda=_text(log, "cuda_version")),
        unseen=unseen,
    )


def _gpu(element: ElementTree.Element) -> Gpu:
    name = _text(element, "product_name") or "NVIDIA GPU"
    reasons = element.find("clocks_event_reasons")
    if reasons is None:
        reasons = element.find("clocks_throttle_reasons")
    active = {
        word
        for child in (reasons if reasons is not None else ())
        for ending, word in _THROTTLES.items()
        if child.tag.endswith(f"reason_{ending}") and (child.text or "").strip() == "Active"
    }
    links = element.find("pci/pci_gpu_link_info/link_widths")
    mig = _text(element, "mig_mode/current_mig")
    return Gpu(
        name=name,
        uuid=_text(element, "uuid"),
        bus=_text(element, "pci/pci_bus_id") or element.get("id"),
        capability=capability_of(name),
        memory=_bytes(_text(element, "fb_memory_usage/total")),
        used=_bytes(_text(element, "fb_memory_usage/used")),
        processes=tuple(
            Process(
                pid=_number(_text(process, "pid")) or 0,
                name=_text(process, "process_name") or "",
                memory=_bytes(_text(process, "used_memory")),
            )
            for process in element.findall("processes/process_info")
        ),
        compute_mode=_MODES.get(_text(element, "compute_mode") or ""),
        mig=None if mig is None else mig == "Enabled",
        ecc_uncorrected=_ecc(element),
        remap_pending=_yes(_text(element, "remapped_rows/remapped_row_pending")),
        remap_failed=_yes(_text(element, "remapped_rows/remapped_row_failure")),
        throttle=tuple(sorted(active)),
        fabric=_FABRIC.get(_text(element, "fabric/state") or ""),
        link_width=_number(_text(links, "current_link_width")),
        link_width_max=_number(_text(links, "max_link_width")),
    )


def _ecc(element: ElementTree.Element) -> int | None:
    volatile = element.find("ecc_errors/volatile")
    counts = [
        _number(child.text)
        for child in (volatile.iter() if volatile is not None else ())
        if "uncorrectable" in child.tag or child.tag == "total"
    ]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _text(element: ElementTree.Element | None, path: str) -> str | None:
    found = element.findtext(path) if element is not None else None
    found = (found or "").strip()
    return None if found in ("", "N/A", "[N/A]", "Requested functionality has been deprecated") else found


def _number(text: str | None) -> int | None:
    match = re.match(r"\d{1,15}", (text or "").strip())
    return int(match[0]) if match else None


def _bytes(text: str | None) -> int | None:
    number = _number(text)
    return number * 1024**2 if number is not None and "MiB" in (text or "") else None


def _yes(text: str | None) -> bool | None:
    return None if text is None else text == "Yes"
