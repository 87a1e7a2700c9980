"""What the installed torch was built for, from its files: it is never imported."""

from __future__ import annotations

import ast
import mmap
import re
from collections.abc import Sequence
from pathlib import Path

from vlmdoctor.evidence.environment.facts import Torch
from vlmdoctor.probes.machine.packages import Installed
from vlmdoctor.sandbox import reading

_ARCHS = re.compile(rb"(?:(?:sm|compute)_\d{2,3}[af]?)(?: (?:sm|compute)_\d{2,3}[af]?)*")


def read(site: Sequence[str], found: Installed) -> Torch | None:
    """The torch that `import torch` would find in the folders `site`; None without one."""
    shadow = None
    for entry in dict.fromkeys(site):
        folder = Path(entry) / "torch"
        if reading.exists(folder / "version.py"):
            values = assignments(folder / "version.py")
            return Torch(
                version=values.get("__version__") or found.versions.get("torch", ""),
                cuda=values.get("cuda"),
                hip=values.get("hip"),
                xpu=values.get("xpu"),
                archs=architectures(folder) if values.get("cuda") else (),
                folder=str(folder),
                recorded=found.recorded.get("torch", ()),
                shadow=shadow,
            )
        own = (folder / "__init__.py", Path(entry) / "torch.py")
        shadow = shadow or next((str(path) for path in own if reading.exists(path)), None)
    if "torch" in found.versions or shadow is not None:
        version = found.versions.get("torch", "")
        return Torch(version=version, archs=None, recorded=found.recorded.get("torch", ()), shadow=shadow)
    return None


def architectures(folder: Path) -> tuple[str, ...] | None:
    """The GPU architectures that the wheel holds code for; None where its library does not tell.

    The list is a text in libtorch_python.so, the one that `torch.cuda.get_arch_list` splits.
    """
    try:
        path = folder / "lib" / "libtorch_python.so"
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            at = data.find(b"\0sm_")
            while at >= 0:
                end = data.find(b"\0", at + 1, at + 400)
                if end > 0 and _ARCHS.fullmatch(listed := data[at + 1 : end]):
                    return tuple(listed.decode().split())
                at = data.find(b"\0sm_", at + 1)
    except (OSError, ValueError):
        pass
    return None


def assignments(path: Path) -> dict[str, str]:
    """Names that a Python file binds to text constants at top level; empty where it can't be read."""
    try:
        tree = ast.parse(reading.text(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            continue
        for target in targets:
            if (
                isinstance(target, ast.Name)
                and isinstance(value, ast.Constant)
                and isinstance(value.value, str)
            ):
                found[target.id] = value.value
    return found
