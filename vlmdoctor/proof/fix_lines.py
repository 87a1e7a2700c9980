"""Running the very lines of a fix on a copy, before they are printed.

A line that raises is not printed. One after which the rule finds nothing any more is marked as tried. All
others are patterns: they have names that only the user knows, or the copy does not show what they do.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from vlmdoctor.engine import Gatherer, judge
from vlmdoctor.errors import Unavailable, WouldMove
from vlmdoctor.finding import Finding, Fix
from vlmdoctor.knowledge.shell import is_code
from vlmdoctor.proof.workbench import Workbench, workbench_for
from vlmdoctor.rulebook import Rule
from vlmdoctor.sandbox.restore import restoring
from vlmdoctor.sandbox.signals import raise_if_interrupted
from vlmdoctor.subject import Subject

MOST = 8  # findings whose fix is tried
_MODULES = {"torch": torch, "nn": nn, "F": functional}
# What a line may call or name: nothing that reads, writes, runs or prints more than a value.
_BUILTINS = frozenset(
    ("abs", "all", "any", "float", "int", "len", "max", "min", "print", "range", "set", "sum")
)
_FORBIDDEN = frozenset(("backends", "compile", "cuda", "hub", "jit", "load", "ops", "save", "utils"))


def tried(
    findings: Sequence[Finding],
    subject: Subject,
    rules: Iterable[Rule],
    depth: str,
    in_time: Callable[[], bool],
) -> tuple[Finding, ...]:
    """The findings with the lines of their fixes tried; what can't be tried stays as it is."""
    by_name = {rule.name: rule for rule in rules}
    left = MOST
    done = []
    for finding in findings:
        lines = finding.fix.commands if finding.fix else ()
        if lines and all(map(is_code, lines)) and left and in_time() and finding.rule in by_name:
            left -= 1
            finding = _with_tried_lines(finding, subject, by_name[finding.rule], depth)
        done.append(finding)
    return tuple(done)


def _with_tried_lines(finding: Finding, subject: Subject, rule: Rule, depth: str) -> Finding:
    fix = finding.fix
    assert fix is not None
    code = _runnable("\n".join(fix.commands), subject)
    if code is None:
        return finding
    try:
        with restoring(subject):
            bench = workbench_for(subject)
            names = _names(bench)
            before = dict(names)
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(code, {"__builtins__": {name: getattr(builtins, name) for name in _BUILTINS}}, names)
            except Exception:
                raise_if_interrupted()
                return dataclasses.replace(finding, fix=Fix(fix.text.rstrip(" :")))
            _take_over(bench, {n: value for n, value in names.items() if value is not before.get(n)})
            judged = judge([rule], Gatherer(bench.subject(subject), depth=depth), command="", target="")
    except (Unavailable, WouldMove):
        return finding
    except Exception:
        raise_if_interrupted()
        return finding
    helped = bool(judged.ran) and not judged.findings
    return dataclasses.replace(finding, fix=dataclasses.replace(fix, tried=True)) if helped else finding


def _runnable(text: str, subject: Subject) -> Any:
    """The lines as code, if they name nothing but what is on the bench; else None."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    known = {"model", "batch", "optimizer", *_MODULES, *_BUILTINS}
    if isinstance(subject.batch, Mapping):
        known |= {str(name) for name in subject.batch}
    assigned = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Lambda | ast.Delete | ast.With | ast.While):
            return None
        if isinstance(node, ast.Constant) and node.value is Ellipsis:
            return None
        if isinstance(node, ast.Attribute) and (node.attr.startswith("_") or node.attr in _FORBIDDEN):
            return None
        if isinstance(node, ast.Name) and node.id not in known | assigned:
            return None
    return compile(tree, "<the lines of a fix>", "exec")


def _names(bench: Workbench) -> dict[str, Any]:
    own = {"model": bench.model, "batch": bench.batch, **_MODULES}
    if bench.optimizers:
        own["optimizer"] = bench.optimizers[0]
    if isinstance(bench.batch, Mapping):
        own = {**{str(name): value for name, value in bench.batch.items()}, **own}
    return own


def _take_over(bench: Workbench, made: Mapping[str, Any]) -> None:
    """What the lines have made anew: a model, an optimizer, or parts of the batch."""
    if isinstance(made.get("model"), nn.Module):
        bench.model = made["model"]
    if hasattr(made.get("optimizer"), "param_groups"):
        bench.optimizers[:1] = [made["optimizer"]]
    bench.batch = made.get("batch", bench.batch)
    if isinstance(bench.batch, Mapping):
        changed = {name: made[str(name)] for name in bench.batch if str(name) in made}
        bench.batch = {**bench.batch, **changed} if changed else bench.batch
