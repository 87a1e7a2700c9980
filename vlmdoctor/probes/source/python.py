"""Settings in Python files and notebooks, read from the syntax tree; nothing is run."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.source import OnCpu, Setting
from vlmdoctor.knowledge.watched_variables import is_watched, read_by_cuda, readers
from vlmdoctor.plain_text import shown_integer
from vlmdoctor.probes.source.cpu import on_cpu
from vlmdoctor.probes.source.files import is_test
from vlmdoctor.probes.source.flow import Event, Statement, before, events, statements

_TRAINS = re.compile(
    r"\.backward\(|\boptimizer\.step\(|\boptim\w*\.(Adam|SGD|RMS)|\b\w*Trainer\(|\btrainer\.(train|fit)\("
    r"|\baccelerator\.|\bdeepspeed\."
)
_TORCH = re.compile(
    r"^\s*(?:from\s+|import\s+(?:[\w.]+(?:\s+as\s+\w+)?\s*,\s*)*)"
    r"(?:torch|transformers|lightning|pytorch_lightning|accelerate|timm|peft|diffusers|trl|datasets)\b",
    re.MULTILINE,
)
# What is set for other processes that the file starts is read by these, whatever this one has read before.
_STARTS_PROCESSES = re.compile(
    r"\bsubprocess\b|\bmultiprocessing\b|\bmp\.spawn\b|\bos\.(system|exec\w+|spawn\w+)\(|\bPopen\b"
    r"|\btorchrun\.main\b|\belastic_launch\b|\bnotebook_launcher\b"
)
_MAGIC = re.compile(r"^\s*%(?:set_)?env\s+(\w+)\s*(?:=\s*|\s)(.*?)\s*$")
# Cell magics after which the cell is still Python of this kernel.
_TRANSPARENT = ("%%time", "%%timeit", "%%capture", "%%prun")


def in_python(file: str, text: str) -> Iterator[Setting | OnCpu]:
    """What a Python file sets and keeps on the CPU; raises `Unavailable` where it is not valid Python."""
    found = statements(_parsed(text))
    yield from _finished(list(_settings(file, text, found, events(found))), text)
    yield from _kept_on_cpu(file, text, found)


def in_notebook(file: str, text: str) -> Iterator[Setting | OnCpu]:
    """The same for the code cells of a notebook: Python and the %env magic, as if run from top to bottom."""
    found: list[Setting] = []
    kept: list[OnCpu] = []
    happened: list[Event] = []
    cells = [(number, _lines_of(code)) for number, code in _code_cells(text)]
    whole = "\n".join("\n".join(lines) for _, lines in cells)
    # Lines are counted through all cells, so that what an earlier cell did comes before.
    offset = 0
    for number, lines in cells:
        for i, line in enumerate(lines):
            magic = _MAGIC.match(line)
            if magic and is_watched(magic[1]):
                value = None if "$" in magic[2] or "{" in magic[2] else magic[2]
                late = _late(magic[1], happened, offset + i + 1, None)
                found.append(
                    Setting(
                        file=file,
                        line=i + 1,
                        name=magic[1],
                        value=value,
                        code=line.strip(),
                        cell=number,
                        late=late,
                    )
                )
            if line.lstrip().startswith(("%", "!", "?")):
                lines[i] = line[: len(line) - len(line.lstrip())] + "pass"
        python = "\n".join(lines)
        with contextlib.suppress(Unavailable):
            inside = statements(_parsed(python))
            happened += [dataclasses.replace(e, line=e.line + offset) for e in events(inside)]
            for setting in _settings(file, python, inside, happened, offset):
                found.append(dataclasses.replace(setting, cell=number))
            for place in _kept_on_cpu(file, python, inside, whole, offset):
                kept.append(dataclasses.replace(place, cell=number))
        offset += len(lines)
    yield from _finished(found, whole)
    yield from kept


def _lines_of(code: str) -> list[str]:
    """The lines of a cell that are Python of this kernel: none where a magic makes it something else."""
    lines = code.splitlines()
    if lines and lines[0].startswith("%%"):
        return ["", *lines[1:]] if lines[0].startswith(_TRANSPARENT) else []
    return lines


def _parsed(text: str) -> ast.Module:
    try:
        return ast.parse(text)
    except SyntaxError as error:
        raise Unavailable(f"not valid Python (line {error.lineno})") from None
    except (ValueError, RecursionError, MemoryError):
        raise Unavailable("not valid Python") from None


def _code_cells(text: str) -> list[tuple[int, str]]:
    try:
        notebook = json.loads(text)
        cells = notebook["cells"]
        return [
            (number, "".join(cell["source"]))
            for number, cell in enumerate(cells, start=1)
            if cell.get("cell_type") == "code"
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Unavailable("not a notebook of format 4") from None


def _finished(found: list[Setting], text: str) -> Iterator[Setting]:
    """Adds what only the whole file tells: whether it trains, and whether a setting is undone later."""
    trains, uses_torch = bool(_TRAINS.search(text)), bool(_TORCH.search(text))
    for_others = bool(_STARTS_PROCESSES.search(text))
    found = sorted(found, key=lambda setting: (setting.cell or 0, setting.line))
    for i, setting in enumerate(found):
        undone = any(later.name == setting.name and later.condition is None for later in found[i + 1 :])
        yield dataclasses.replace(
            setting,
            undone=undone,
            late=None if for_others else setting.late,
            trains=trains,
            uses_torch=uses_torch,
            in_tests=is_test(setting.file),
        )


def _settings(
    file: str, text: str, found: list[Statement], happened: list[Event], offset: int = 0
) -> Iterator[Setting]:
    lines = text.splitlines()
    for statement in found:
        node = statement.node
        for name, value in _set_by(node):
            if is_watched(name):
                code = lines[node.lineno - 1].strip() if node.lineno <= len(lines) else ""
                condition = " and ".join(statement.conditions) or None
                late = _late(name, happened, node.lineno + offset, statement.function)
                yield Setting(
                    file=file,
                    line=node.lineno,
                    name=name,
                    value=value,
                    code=code,
                    condition=condition,
                    late=late,
                )


def _late(name: str, happened: list[Event], line: int, function: str | None) -> str | None:
    """What came before a line and has read the variable already, in words; None where nothing has."""
    libraries = readers(name)
    for event in before(happened, line, function):
        if event.library in libraries or (event.library is None and read_by_cuda(name)):
            return event.what
    return None


def _kept_on_cpu(
    file: str, text: str, found: list[Statement], whole: str | None = None, offset: int = 0
) -> Iterator[OnCpu]:
    lines = text.splitlines()
    for line, what in on_cpu(text, found, whole, offset):
        code = lines[line - 1].strip() if line <= len(lines) else ""
        yield OnCpu(file=file, line=line, what=what, code=code, in_tests=is_test(file))


def _set_by(statement: ast.stmt) -> Iterator[tuple[str, str | None]]:
    """(variable, value) that one statement sets in this process; None for a value that is no constant."""
    if isinstance(statement, ast.Assign):
        for target in statement.targets:
            if isinstance(target, ast.Subscript) and _is_environ(target.value):
                yield _text(target.slice) or "", _text(statement.value)
    elif isinstance(statement, ast.AugAssign) and _is_environ(statement.target):
        yield from _in_dict(statement.value)
    elif isinstance(statement, ast.Delete):
        for target in statement.targets:
            if isinstance(target, ast.Subscript) and _is_environ(target.value):
                yield _text(target.slice) or "", None
    elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
        yield from _set_by_call(statement.value)


def _set_by_call(call: ast.Call) -> Iterator[tuple[str, str | None]]:
    if not isinstance(call.func, ast.Attribute):
        return
    method, owner = call.func.attr, call.func.value
    first = _text(call.args[0]) if call.args else None
    if _is_environ(owner):
        if method == "update":
            for argument in call.args:
                yield from _in_dict(argument)
            yield from ((keyword.arg or "", _text(keyword.value)) for keyword in call.keywords)
        elif method in ("setdefault", "__setitem__") and len(call.args) == 2:
            yield first or "", _text(call.args[1])
        elif method in ("pop", "__delitem__"):
            yield first or "", None
    elif method in ("putenv", "unsetenv") and isinstance(owner, ast.Name) and owner.id == "os":
        yield first or "", _text(call.args[1]) if len(call.args) == 2 else None


def _in_dict(node: ast.expr) -> Iterator[tuple[str, str | None]]:
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            yield (_text(key) or "") if key is not None else "", _text(value)


def _is_environ(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == "environ"
    return isinstance(node, ast.Name) and node.id == "environ"


def _text(node: ast.expr) -> str | None:
    """The text that an expression stands for: a constant, or str() of one."""
    if (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "str"
        and len(node.args) == 1
    ):
        node = node.args[0]
        if (
            isinstance(node, ast.UnaryOp)
            and isinstance(node.op, ast.USub)
            and isinstance(node.operand, ast.Constant)
        ):
            return f"-{_constant(node.operand)}"
        return _constant(node) if isinstance(node, ast.Constant) else None
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _constant(node: ast.Constant) -> str:
    return shown_integer(node.value) if type(node.value) is int else str(node.value)
