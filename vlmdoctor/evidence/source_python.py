"""Settings of GPU variables in Python files and notebooks, read from the syntax tree; nothing is run."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.environment import VARIABLES
from vlmdoctor.evidence.source import Setting, is_test

_TRAINS = re.compile(
    r"\.backward\(|\boptimizer\.step\(|\boptim\w*\.(Adam|SGD|RMS)|\b\w*Trainer\(|\btrainer\.(train|fit)\("
    r"|\baccelerator\.|\bdeepspeed\."
)
_TORCH = re.compile(
    r"^\s*(import|from)\s+(torch|transformers|lightning|pytorch_lightning|accelerate|timm|peft)\b", re.M
)
_MAGIC = re.compile(r"^\s*%(?:set_)?env\s+(\w+)\s*(?:=\s*|\s)(.*?)\s*$")
# Cell magics after which the cell is still Python of this kernel.
_TRANSPARENT = ("%%time", "%%timeit", "%%capture", "%%prun")


def settings_in_python(file: str, text: str) -> Iterator[Setting]:
    """The settings in a Python file; raises `Unavailable` where it is not valid Python."""
    found = list(_in_tree(file, text, _parsed(text)))
    yield from _finished(found, text)


def settings_in_notebook(file: str, text: str) -> Iterator[Setting]:
    """The settings in the code cells of a notebook: Python and the %env magic."""
    found: list[Setting] = []
    cells = _code_cells(text)
    for number, code in cells:
        lines = code.splitlines()
        if lines and lines[0].startswith("%%"):
            if not lines[0].startswith(_TRANSPARENT):
                continue
            lines[0] = ""
        for i, line in enumerate(lines):
            magic = _MAGIC.match(line)
            if magic and magic[1] in VARIABLES:
                value = None if "$" in magic[2] or "{" in magic[2] else magic[2]
                found.append(Setting(file, i + 1, magic[1], value, line.strip(), cell=number))
            if line.lstrip().startswith(("%", "!", "?")):
                lines[i] = line[: len(line) - len(line.lstrip())] + "pass"
        python = "\n".join(lines)
        try:
            tree = _parsed(python)
        except Unavailable:
            continue
        found += [dataclasses.replace(setting, cell=number) for setting in _in_tree(file, python, tree)]
    yield from _finished(found, "\n".join(code for _, code in cells))


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
    found = sorted(found, key=lambda setting: (setting.cell or 0, setting.line))
    for i, setting in enumerate(found):
        undone = any(later.name == setting.name and later.condition is None for later in found[i + 1 :])
        yield dataclasses.replace(
            setting,
            undone=undone,
            trains=trains,
            uses_torch=uses_torch,
            in_tests=is_test(setting.file),
        )


def _in_tree(file: str, text: str, tree: ast.Module) -> Iterator[Setting]:
    lines = text.splitlines()
    called = {ast.unparse(node.func).split(".")[-1] for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node, conditions in _with_conditions(tree, (), called):
        for name, value in _set_by(node):
            if name in VARIABLES:
                code = lines[node.lineno - 1].strip() if node.lineno <= len(lines) else ""
                condition = " and ".join(conditions) or None
                yield Setting(file, node.lineno, name, value, code, condition=condition)


def _with_conditions(
    node: ast.AST, conditions: tuple[str, ...], called: set[str]
) -> Iterator[tuple[ast.stmt, tuple[str, ...]]]:
    """Every statement with the conditions that it stands under."""
    for child in ast.iter_child_nodes(node):
        inner = conditions
        if isinstance(node, ast.If) and child is not node.test:
            test = ast.unparse(node.test)
            if "__name__" not in test:
                inner = (*conditions, f"not ({test})" if child in node.orelse else test)
        elif isinstance(node, ast.ExceptHandler):
            inner = (*conditions, "an exception")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in called:
            inner = (*conditions, f"{node.name}() being called")
        if isinstance(child, ast.stmt):
            yield child, inner
        yield from _with_conditions(child, inner, called)


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
            return f"-{node.operand.value}"
        return str(node.value) if isinstance(node, ast.Constant) else None
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None
