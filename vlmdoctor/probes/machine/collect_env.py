"""Reports of `python -m torch.utils.collect_env`, and vLLM's variant of it, as people paste them."""

from __future__ import annotations

import re

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.evidence.environment.facts import Driver, Gpu, Host, Live, Torch
from vlmdoctor.knowledge.gpu_capabilities import capability_of
from vlmdoctor.knowledge.kept_variables import kept_variables
from vlmdoctor.probes.machine.packages import PACKAGES

_FIELD = re.compile(r"^([A-Za-z][\w /()-]{1,40}?)\s*:(?: (.*))?$")
_PIP = re.compile(r"^\[(?:pip3?|conda|uv)\]\s+([A-Za-z0-9_.-]+)(?:==|\s+)(\S+)", re.MULTILINE)
_ASSIGNED = re.compile(r"^([A-Z][A-Z0-9_]{2,60})=(.*)$", re.MULTILINE)
_NOTHING = {"", "N/A", "None", "Could not collect", "No CUDA"}
NOT_SHOWN = "a collect_env report does not show it"


def is_report(text: str) -> bool:
    """Whether a text looks like such a report."""
    return bool(re.search(r"^(?:PyTorch version|Is debug build)\s*:", _unquoted(text), re.MULTILINE))


def read(text: str) -> Environment:
    """The snapshot in a report. What it can't show is named in `unseen`."""
    text = _unquoted(text)
    values = _fields(text)
    packages = {
        re.sub(r"[-_.]+", "-", name).lower(): version
        for name, version in reversed(_PIP.findall(text))
        if version != "Could"
    }
    torch = _torch(values, packages)
    if torch is not None:
        packages["torch"] = torch.version
    gpus = _gpus(values.get("GPU models and configuration", ""))
    driver = _value(values, "Nvidia driver version")
    cpus = re.search(r"^CPU\(s\):\s+(\d+)", text, re.MULTILINE)
    has_variables = "LD_LIBRARY_PATH=" in text or "CUDA_VISIBLE_DEVICES=" in text or "vLLM" in text
    unseen = dict.fromkeys(
        (
            *("nvml", "live", "pci", "libraries", "extensions", "openmp", "requires", "nodes", "host"),
            *("archs", "accelerate_cpu"),
        ),
        NOT_SHOWN,
    )
    live = _live(values, torch, gpus)
    if live is not None:
        unseen.pop("live")
    if torch is None or ("PyTorch version" in values and _value(values, "PyTorch version") is None):
        # It could not be imported there: what it was built for is not told.
        unseen["torch"] = "torch could not be imported where the report was made"
    if "GPU models and configuration" not in values:
        unseen["gpus"] = "the report ends before its GPUs"
    elif not gpus and "could not collect" in values["GPU models and configuration"].lower():
        unseen["gpus"] = "the report could not collect its GPUs"
    if not has_variables:
        unseen["variables"] = NOT_SHOWN
    archs = re.search(r"CUDA Archs?:\s*((?:sm_\d+\w?[ ,]*)+)", text)
    if torch is not None and archs:
        torch = Torch(
            version=torch.version,
            cuda=torch.cuda,
            hip=torch.hip,
            archs=tuple(re.findall(r"sm_\d+\w?", archs[1])),
        )
        unseen.pop("archs")
    kernel = re.search(r"-?(\d+\.\d+[\w.-]*)", _value(values, "Python platform") or "")
    system = _value(values, "OS") or ""
    return Environment(
        origin="a collect_env report",
        python=(_value(values, "Python version") or "").split(" ")[0],
        platform=_platform(values, system),
        kernel=kernel[1] if kernel else None,
        container="wsl" if "microsoft" in (_value(values, "Python platform") or "").lower() else None,
        variables=kept_variables(dict(_ASSIGNED.findall(text))),
        packages={name: packages[name] for name in _wanted(packages)},
        torch=torch,
        gpus=gpus,
        live=live,
        driver=Driver(version=driver) if driver and re.match(r"\d+\.\d", driver) else None,
        other_accelerator="an Apple GPU" if re.search(r"^Apple M\d", text, re.MULTILINE) else None,
        host=Host(cpus=int(cpus[1])) if cpus and int(cpus[1][:6]) > 0 else None,
        unseen=unseen,
    )


def _unquoted(text: str) -> str:
    """Without the marks that quoting in mails and issues puts in front of lines."""
    return re.sub(r"^(?:[>|\t `]|\*+ )+(?=\S|$)", "", text.replace("\r\n", "\n"), flags=re.MULTILINE)


def _fields(text: str) -> dict[str, str]:
    """Field -> value; lines that follow a field without being one belong to its value."""
    found: dict[str, str] = {}
    name = None
    for line in text.split("\n"):
        match = _FIELD.match(line)
        if match and not re.match(r"GPU \d+$", match[1]):
            name = match[1].strip()
            found.setdefault(name, match[2] or "")
        elif name is not None and line.strip() and not line.startswith("["):
            found[name] += "\n" + line
        else:
            name = None
    return found


def _value(values: dict[str, str], name: str) -> str | None:
    """The first line of a field's value; None where it says that there is none."""
    value = values.get(name, "").strip().partition("\n")[0].strip()
    return None if value in _NOTHING else value


def _torch(values: dict[str, str], packages: dict[str, str]) -> Torch | None:
    version = _value(values, "PyTorch version") or packages.get("torch")
    number = re.match(r"\d\S*", version or "")
    if number is None:
        return None
    built = _value(values, "CUDA used to build PyTorch")
    hip = _value(values, "ROCM used to build PyTorch")
    cuda = built if built and re.match(r"\d", built) else None
    hip = hip if hip and re.match(r"\d", hip) else None
    return Torch(version=number[0], cuda=cuda, hip=hip, archs=() if cuda is None else None)


def _live(values: dict[str, str], torch: Torch | None, gpus: tuple[Gpu, ...]) -> Live | None:
    """What torch said of CUDA; None where nothing follows from it."""
    available = _value(values, "Is CUDA available") or ""
    if torch is None or not torch.cuda or not gpus:
        return None
    if available in ("True", "Yes"):
        return Live(state="answered", by_torch=True)
    return Live(state="refused", by_torch=True) if available in ("False", "No") else None


def _gpus(text: str) -> tuple[Gpu, ...]:
    found: list[Gpu] = []
    for name in re.findall(r"^GPU \d+: (.+?)\s*(?:\(UUID: [^)]*\))?$", text, re.MULTILINE):
        mig = bool(found) and "MIG" in name
        if not mig:
            found.append(Gpu(name=name.strip(), capability=capability_of(name)))
    return tuple(found)


def _platform(values: dict[str, str], system: str) -> str:
    machine = re.search(r"\((x86_64|aarch64|arm64|AMD64)\)\s*$", system)
    machine = machine or re.search(r"(x86_64|aarch64|arm64|AMD64)", _value(values, "Python platform") or "")
    kind = "Windows" if "Windows" in system else "Darwin" if system.lower().startswith("mac") else "Linux"
    return f"{kind} {machine[1]}" if machine else kind


def _wanted(packages: dict[str, str]) -> list[str]:
    wanted = [name for name in PACKAGES if name in packages]
    return wanted + sorted(name for name in packages if name.startswith("nvidia-") and name not in wanted)
