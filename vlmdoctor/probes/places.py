"""Where in the user's own code a module is called, a mask is made, and a loss is computed.

A finding that names a module or the labels says less than the line to look at. One more pass, with a look at
the stack where these modules are called, gives it. A library's line is never given: nobody would change it.
"""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from vlmdoctor.finding import Finding
from vlmdoctor.probes.failure.traceback import is_ours, is_users, modules_by_name, shown_path
from vlmdoctor.probes.loss.calls import watched_losses
from vlmdoctor.sandbox.call import run, seed
from vlmdoctor.sandbox.copies import copy_of
from vlmdoctor.sandbox.reading import source_line, text
from vlmdoctor.sandbox.restore import restoring
from vlmdoctor.sandbox.signals import raise_if_interrupted
from vlmdoctor.subject import Subject

MOST = 16  # findings that are given a place
LOSS = "the loss"
_NO_MODULE = "the input of "


@dataclass(frozen=True)
class Place:
    """A line of the user's code.

    Attributes:
        file: Its file.
        line: Its number, from 1.
    """

    file: str
    line: int


def located(findings: Sequence[Finding], subject: Subject) -> tuple[Finding, ...]:
    """The findings, those that name a module or the labels with the line of the user's code for it.

    Where that can't be had, they stay as they are: nothing else depends on it.
    """
    wanted = {id(f): name for f in findings if f.file is None and (name := _wanted(f, subject.model))}
    if not wanted or subject.batch is None:
        return tuple(findings)
    try:
        found = _seen(subject, dict.fromkeys(list(wanted.values())[:MOST]))
    except Exception:
        raise_if_interrupted()
        return tuple(findings)
    return tuple(_placed(finding, found.get(wanted.get(id(finding), ""))) for finding in findings)


def _placed(finding: Finding, place: tuple[Place, Place | None] | None) -> Finding:
    if place is None:
        return finding
    called, mask = place
    # What is wrong with a mask is wrong where it is made.
    at = mask if mask is not None and finding.code.startswith("MASK") else called
    return dataclasses.replace(
        finding, file=shown_path(at.file), line=at.line, source=source_line(at.file, at.line)
    )


def _wanted(finding: Finding, model: nn.Module) -> str | None:
    """The module that it names, or the loss."""
    names = _names(model)
    for text_ in finding.at:
        place = text_.removeprefix(_NO_MODULE).split(" ", 1)[0]
        while place:
            if place in names:
                return place
            place = place.rpartition(".")[0]
    return LOSS if finding.code.startswith("LOSS") else None


def _names(model: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in modules_by_name(model).items() if name}


def _seen(subject: Subject, names: Iterable[str]) -> dict[str, tuple[Place, Place | None]]:
    """Name -> (where it is called, where the mask that it is given is made), of those that are called."""
    modules = _names(subject.model)
    found: dict[str, tuple[Place, Place | None]] = {}

    def note(name: str) -> None:
        if name not in found and (frame := _users_frame()) is not None:
            place = Place(frame.f_code.co_filename, frame.f_lineno)
            found[name] = place, _mask_of(place)

    def heard(*_: Any) -> None:
        note(LOSS)

    with restoring(subject), ExitStack() as hooks:
        for name in names:
            for module in _called(modules.get(name)):
                handle = module.register_forward_pre_hook(lambda *_, name=name: note(name))
                hooks.callback(handle.remove)
        hooks.enter_context(watched_losses(heard))
        hooks.enter_context(torch.no_grad())
        seed(0)
        run(subject.model, copy_of(subject.batch), subject.loss_fn)
    return found


def _called(module: nn.Module | None) -> Iterator[nn.Module]:
    """The module, or what a list of modules holds: that is never called itself."""
    if module is None:
        return
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        yield from module.children()
    else:
        yield module


def called_at() -> Place | None:
    """The line of the user's own code that called what runs; from inside a hook of a pass."""
    frame = _users_frame()
    return None if frame is None else Place(shown_path(frame.f_code.co_filename), frame.f_lineno)


def _users_frame() -> Any:
    """The innermost frame of the user's own code in this pass; None where only a library's code runs."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and is_ours(frame.f_code.co_filename):
        frame = frame.f_back  # the hook itself
    while frame is not None and not is_ours(frame.f_code.co_filename):
        if is_users(frame.f_code.co_filename):
            return frame
        frame = frame.f_back
    return None


def _mask_of(place: Place) -> Place | None:
    """The line that makes the mask which is given in the call at `place`; None where none is given."""
    try:
        tree = ast.parse(text(Path(place.file)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.lineno <= place.line <= (node.end_lineno or node.lineno)
    ]
    if not functions:
        return None
    function = max(functions, key=lambda node: node.lineno)
    calls = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and node.lineno <= place.line <= (node.end_lineno or node.lineno)
    ]
    masks = {name for call in calls for name in _mask_names(call)}
    made = [
        node.lineno
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and node.lineno < place.line
        and any(isinstance(target, ast.Name) and target.id in masks for target in node.targets)
    ]
    return Place(place.file, max(made)) if made else None


def _mask_names(call: ast.Call) -> Iterator[str]:
    given = [(keyword.arg or "", keyword.value) for keyword in call.keywords]
    given += [("", argument) for argument in call.args]
    for name, value in given:
        if isinstance(value, ast.Name) and ("mask" in name or "mask" in value.id):
            yield value.id
