"""The line of source that made a tensor of a module, read from the class's `__init__`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from torch import nn

_WIDE = re.compile(r"hidden|n_embd|d_model|embed_dim")


def line_that_made(model: nn.Module, owner: nn.Module, attribute: str) -> tuple[str, int] | None:
    """(file, line) of the statement behind `owner.<attribute>`; None where the source does not show it.

    That is the statement that assigns or registers it, or the one that made the variable registered; where
    that names no hidden size, the line in the parent module that made `owner`: the size comes from there.
    """
    direct = _statement_in_init(owner, attribute)
    if direct is not None and not _WIDE.search(direct[2]):
        parent, name = _parent_of(model, owner)
        from_parent = _statement_in_init(parent, name) if parent is not None else None
        if from_parent is not None and _WIDE.search(from_parent[2]):
            direct = from_parent
    return None if direct is None else direct[:2]


def _statement_in_init(owner: nn.Module, attribute: str) -> tuple[str, int, str] | None:
    """(file, line, text) of what sets `self.<attribute>` in the `__init__` of the owner's class."""
    code = getattr(type(owner).__init__, "__code__", None)
    if code is None:
        return None
    try:
        source = Path(code.co_filename).read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
        return None
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    init = next(
        (
            f
            for f in functions
            if f.name == "__init__" and f.lineno <= code.co_firstlineno <= (f.end_lineno or 0)
        ),
        None,
    )
    if init is None:
        return None
    statements = [node for node in ast.walk(init) if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr)]
    setting = next((s for s in statements if _value_set(s, attribute) is not None), None)
    if setting is None:
        return None
    value = _value_set(setting, attribute)
    if isinstance(value, ast.Name):
        earlier = [s for s in statements if s.lineno < setting.lineno and value.id in _names_assigned(s)]
        setting = max(earlier, key=lambda s: s.lineno, default=setting)
    return code.co_filename, setting.lineno, ast.get_source_segment(source, setting) or ""


def _value_set(statement: ast.stmt, attribute: str) -> ast.expr | None:
    """What `statement` stores as `self.<attribute>`, by assignment or by register_buffer."""
    if isinstance(statement, ast.Expr):
        call = statement.value
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr in ("register_buffer", "register_parameter")
            and len(call.args) >= 2
            and isinstance(call.args[0], ast.Constant)
            and call.args[0].value == attribute
        ):
            return call.args[1]
        return None
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]  # type: ignore[attr-defined]
    for target in targets:
        if isinstance(target, ast.Tuple):
            parts = target.elts
        else:
            parts = [target]
        if any(isinstance(part, ast.Attribute) and part.attr == attribute for part in parts):
            return statement.value  # type: ignore[attr-defined]
    return None


def _names_assigned(statement: ast.stmt) -> set[str]:
    if not isinstance(statement, ast.Assign):
        return set()
    return {
        node.id for target in statement.targets for node in ast.walk(target) if isinstance(node, ast.Name)
    }


def _parent_of(model: nn.Module, child: nn.Module) -> tuple[nn.Module | None, str]:
    for module in model.modules():
        for name, candidate in module.named_children():
            if candidate is child:
                return module, name
    return None, ""
