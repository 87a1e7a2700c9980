"""Lines that keep a training on the CPU, found in the syntax tree: plain cases only, under no condition."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from vlmdoctor.probes.source.flow import Statement

_MODEL = re.compile(r"(^|_)(model|net|network|vlm|policy|module)\d*$", re.IGNORECASE)
_DEVICE = re.compile(r"(^|_)device$", re.IGNORECASE)
_TRAINING = re.compile(r"\.backward\(|\btrainer\.(train|fit)\(|\.fit\(|\.train_model\(")
# In these functions the CPU is where one wants to be.
_ASIDE = re.compile(
    r"eval|infer|test|valid|predict|generate|save|export|convert|merge|load|debug|demo", re.IGNORECASE
)
_SWITCHES = {"use_cpu": True, "no_cuda": True, "cpu": True}


def on_cpu(
    text: str, found: list[Statement], whole: str | None = None, offset: int = 0
) -> Iterator[tuple[int, str]]:
    """(line, what it does) for what keeps this file's training on the CPU.

    A cell of a notebook is a part of the `whole`, and begins after `offset` lines of it.
    """
    whole = text if whole is None else whole
    lines = enumerate(whole.splitlines(), start=1)
    first = next((number for number, line in lines if _TRAINING.search(line)), None)
    if first is None:
        return
    bound = [name for statement in found for name in _bound(statement.node)]
    for statement in found:
        node = statement.node
        if statement.conditions or (statement.function and _ASIDE.search(statement.function)):
            continue
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if _DEVICE.search(name) and _is_cpu(node.value) and bound.count(name) == 1 and _used(name, whole):
                yield node.lineno, f"{name} is the CPU, whatever there is"
        moved = _moved(node)
        # Afterwards it goes to the CPU to be saved; before, it may be moved to the GPU again.
        if moved and node.lineno + offset < first and not _moved_on(moved, whole, node.lineno + offset):
            yield node.lineno, f"{moved} is moved to the CPU before it is trained"
        yield from _switches(node)


def _bound(node: ast.stmt) -> Iterator[str]:
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.For):
        targets = [node.target]
    for target in targets:
        yield from (part.id for part in ast.walk(target) if isinstance(part, ast.Name))


def _used(name: str, text: str) -> bool:
    return bool(re.search(rf"\.to\(\s*{name}\b|device\s*=\s*{name}\b", text))


def _is_cpu(node: ast.expr) -> bool:
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.device", "device") and node.args:
        node = node.args[0]
    return isinstance(node, ast.Constant) and node.value == "cpu"


def _moved(node: ast.stmt) -> str | None:
    """The model that a statement such as `model.cpu()` moves to the CPU; None for others."""
    if not isinstance(node, ast.Expr | ast.Assign) or not isinstance(node.value, ast.Call):
        return None
    call = node.value
    if not isinstance(call.func, ast.Attribute) or not isinstance(call.func.value, ast.Name):
        return None
    to_cpu = call.func.attr == "to" and len(call.args) == 1 and _is_cpu(call.args[0])
    if not to_cpu and not (call.func.attr == "cpu" and not call.args):
        return None
    owner = call.func.value.id
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) != owner:
        return None
    return owner if _MODEL.search(owner) else None


def _moved_on(name: str, text: str, line: int) -> bool:
    """Whether it is moved again later on, or was only moved out of the way, to be forgotten."""
    later = "\n".join(text.splitlines()[line:])
    word = rf"\b{re.escape(name)}\b"
    moved = rf"{word}\s*\.\s*(cuda|to)\s*\(|\.prepare\("
    forgotten = rf"\bdel\b[^\n]*{word}|{word}\s*=\s*None\b"
    return bool(re.search(f"{moved}|{forgotten}", later))


def _switches(node: ast.stmt) -> Iterator[tuple[int, str]]:
    if not isinstance(node, ast.Expr | ast.Assign) or not isinstance(node.value, ast.Call):
        return
    call = node.value
    name = ast.unparse(call.func).rpartition(".")[2]
    if not re.search(r"(Arguments|Config|Accelerator|Trainer)$", name):
        return
    for keyword in call.keywords:
        value = keyword.value.value if isinstance(keyword.value, ast.Constant) else None
        if _SWITCHES.get(keyword.arg or "") is value and value is True:
            yield keyword.value.lineno, f"{name}({keyword.arg}=True) trains on the CPU"
        elif keyword.arg == "accelerator" and value == "cpu":
            yield keyword.value.lineno, f'{name}(accelerator="cpu") trains on the CPU'
