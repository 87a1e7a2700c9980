"""Reading an exception's traceback while its variables are alive."""

from __future__ import annotations

import os
import sysconfig
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlmdoctor.evidence.failure import Failure, TensorFact
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.notebook.cells import cell_line, cell_of
from vlmdoctor.plain_text import text_of

_HERE = str(Path(__file__).resolve().parents[2]) + os.sep
# The executor of the dry run stands between the model and torch.
_EXECUTOR = _HERE + "dryrun" + os.sep
_TORCH = str(Path(torch.__file__).parent) + os.sep
# Where transformers keeps its assertions: the line that asked for one tells more.
_CHECKS = f"{os.sep}transformers{os.sep}utils{os.sep}"
_INSTALLED = {"site-packages", "dist-packages"}
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


@dataclass(frozen=True)
class LiveFrame:
    """A frame of a traceback while its variables are still alive; never kept in evidence."""

    file: str
    line: int
    function: str
    variables: Mapping[str, Any]
    arguments: tuple[str, ...]

    @property
    def module(self) -> nn.Module | None:
        """The module whose method this is."""
        owner = self.variables.get("self")
        return owner if isinstance(owner, nn.Module) else None

    @property
    def in_torch(self) -> bool:
        """Whether this is torch's own code."""
        return self.file.startswith(_TORCH)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Tensors among the variables; those in a tuple or list as `name[0]`, `name[1]`."""
        found = {}
        for name, value in self.variables.items():
            if isinstance(value, torch.Tensor):
                found[name] = value
            elif isinstance(value, tuple | list) and len(value) <= 4:
                found |= {f"{name}[{i}]": v for i, v in enumerate(value) if isinstance(v, torch.Tensor)}
        return found


def frames_of(error: BaseException) -> list[LiveFrame]:
    """The frames of `error`, innermost first, without those of vlmdoctor that lead to the model."""
    found: list[LiveFrame] = []
    traceback: types.TracebackType | None = error.__traceback__
    while traceback is not None:
        code = traceback.tb_frame.f_code
        ours = code.co_filename.startswith(_EXECUTOR if found else _HERE)
        # What watches torch's functions stands between the user's lines and torch's.
        watches = code.co_filename.startswith(_HERE) and code.co_name == "__torch_function__"
        if not ours and not watches:
            count = code.co_argcount + code.co_kwonlyargcount
            found.append(
                LiveFrame(
                    file=code.co_filename,
                    line=traceback.tb_lineno,
                    function=code.co_name,
                    variables=dict(traceback.tb_frame.f_locals),
                    arguments=code.co_varnames[:count],
                )
            )
        traceback = traceback.tb_next
    return found[::-1]


def failure_of(error: BaseException, model: nn.Module) -> Failure:
    """`error`, raised while `model` was running, as plain facts."""
    frames = frames_of(error)
    names = module_names(model)
    running = next((frame for frame in frames if frame.module is not None and frame.module in names), None)
    place = place_of(frames)
    inputs: tuple[TensorFact, ...] = ()
    if running is not None:
        given = {
            name: t for name, t in running.tensors().items() if name.partition("[")[0] in running.arguments
        }
        weight = getattr(running.module, "weight", None)
        if isinstance(weight, torch.Tensor):
            given["weight"] = weight
        inputs = tuple(facts(given))
    return Failure(
        type=type(error).__name__,
        message=text_of(error, 600),
        module=names.get(running.module) if running is not None and running.module is not None else None,
        module_class=type(running.module).__name__ if running is not None else None,
        file=shown_path(place.file) if place else None,
        line=place.line if place else None,
        function=place.function if place else None,
        code=line_of(place.file, place.line) if place else None,
        values=tuple(facts(place.tensors())) if place else (),
        inputs=inputs,
    )


def modules_by_name(model: nn.Module) -> dict[str, nn.Module]:
    """All modules by their canonical names; the model itself by an empty one."""
    return {canonical_name(name + ".").rstrip("."): module for name, module in model.named_modules()}


def module_names(model: nn.Module) -> dict[nn.Module, str]:
    """Canonical names of all modules; the model itself is called by its class."""
    return {
        module: canonical_name(name + ".").rstrip(".") or type(model).__name__
        for name, module in model.named_modules()
    }


def place_of(frames: list[LiveFrame]) -> LiveFrame | None:
    """The innermost frame of the user's own code, else of any code but torch's, else the innermost."""
    own = (frame for frame in frames if is_users(frame.file))
    foreign = (frame for frame in frames if not frame.in_torch and _CHECKS not in frame.file)
    return next(own, None) or next(foreign, None) or next(iter(frames), None)


def is_ours(file: str) -> bool:
    """Whether a source file is this package's."""
    return file.startswith(_HERE)


def is_users(file: str) -> bool:
    """Whether a source file is the user's own, and not a library's or generated."""
    # Packages of the user's alone, or of another environment on the path, are libraries too.
    return not file.startswith((*_LIBRARIES, _TORCH, "<")) and _INSTALLED.isdisjoint(Path(file).parts)


def facts(tensors: Mapping[str, torch.Tensor]) -> Iterator[TensorFact]:
    """The outside of each tensor."""
    for name, tensor in tensors.items():
        dtype = str(tensor.dtype).removeprefix("torch.")
        yield TensorFact(name=name, shape=tuple(tensor.shape), dtype=dtype, device=str(tensor.device))


def shown_path(file: str) -> str:
    """A path as people like to read it: relative to the current folder where it lies inside; `Cell In[4]`."""
    if (cell := cell_of(file)) is not None:
        return cell
    path = Path(file)
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


def line_of(file: str, line: int) -> str | None:
    """The text of a source line; None where the file can't be read."""
    if (found := cell_line(file, line)) is not None:
        return found
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    return lines[line - 1].strip() if 0 < line <= len(lines) else None
