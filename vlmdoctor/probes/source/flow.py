"""What a Python file has done before a line: initialised CUDA, or imported a library."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

_INITIALISES = re.compile(
    r"torch\.cuda\.(is_available|init|set_device|current_device|get_device_\w+|mem_get_info|synchronize"
    r"|is_bf16_supported)|(?:\w+\.)*(Accelerator|PartialState|TrainingArguments|Seq2SeqTrainingArguments"
    r"|SFTConfig|DPOConfig|GRPOConfig)"
)
# A function under such a decorator is started by a command line.
_COMMAND = re.compile(r"\.command\b|\bhydra\.main\b|\.main\(|\bhydra_main\b")
# Importing one of these asks CUDA for its devices.
_LOCKS = {"flash_attn"}


@dataclass(frozen=True)
class Statement:
    """A statement with what it stands in.

    Attributes:
        node: The statement.
        conditions: The conditions that it stands under, and functions that nobody calls.
        function: The function that it is in; None at the top.
    """

    node: ast.stmt
    conditions: tuple[str, ...]
    function: str | None


@dataclass(frozen=True)
class Event:
    """Something that happens on the way: `library` was imported, or CUDA was initialised."""

    line: int
    what: str
    function: str | None
    library: str | None = None


@dataclass(frozen=True)
class _Place:
    """A statement with its own conditions and the functions around it, the outermost first."""

    node: ast.stmt
    conditions: tuple[str, ...]
    functions: tuple[str, ...]


def statements(tree: ast.Module) -> list[Statement]:
    """Every statement, in the order of the text."""
    places = list(_below(tree, (), ()))
    reached = _reached(places)
    return [
        Statement(place.node, _conditions(place, reached), place.functions[-1] if place.functions else None)
        for place in places
    ]


def _conditions(place: _Place, reached: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    found: list[str] = []
    for name in place.functions:
        found += reached.get(name, (f"{name}() being called",))
    return (*dict.fromkeys(found), *place.conditions)


def _below(node: ast.AST, conditions: tuple[str, ...], functions: tuple[str, ...]) -> Iterator[_Place]:
    if isinstance(node, ast.ExceptHandler):
        conditions = (*conditions, "an exception")
    elif isinstance(node, ast.match_case):
        conditions = (*conditions, f"case {ast.unparse(node.pattern)}")
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        functions = (*functions, node.name)
    # Statements stand in these fields only; looking through expressions as well takes ten times as long.
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        below = getattr(node, field, None)
        if not isinstance(below, list) or not below:
            continue
        inner = conditions
        if isinstance(node, ast.If):
            test = ast.unparse(node.test)
            if "__name__" not in test:
                inner = (*conditions, f"not ({test})" if field == "orelse" else test)
        for child in below:
            if isinstance(child, ast.stmt):
                yield _Place(child, inner, functions)
            yield from _below(child, inner, functions)


def _reached(places: list[_Place]) -> dict[str, tuple[str, ...]]:
    """Function -> the conditions under which running the file comes to it; those it never does are not there.

    A function is reached by a call at the top of the file, or in a function that is reached itself.
    """
    classes = {place.node.name for place in places if isinstance(place.node, ast.ClassDef)}
    reached: dict[str, tuple[str, ...]] = {
        place.node.name: ()
        for place in places
        if isinstance(place.node, ast.FunctionDef | ast.AsyncFunctionDef)
        and any(_COMMAND.search(ast.unparse(decorator)) for decorator in place.node.decorator_list)
    }
    calling = [(place, names) for place in places if (names := _called(place.node, classes))]
    while True:
        before = dict(reached)
        for place, names in calling:
            if all(name in reached for name in place.functions):
                conditions = _conditions(place, reached)
                for name in names:
                    if not conditions or name not in reached:
                        reached[name] = conditions
        if reached == before:
            return reached


def _called(node: ast.stmt, classes: set[str]) -> set[str]:
    """The names of the functions that a statement calls itself."""
    found: set[str] = set()
    for call in _own_calls(node):
        name = _name(call.func).rpartition(".")[2]
        found.update(("__init__", "__post_init__") if name in classes else (name,))
        # A function that is handed over (fire.Fire(main), mp.spawn(worker)) is called by others.
        found.update(argument.id for argument in call.args if isinstance(argument, ast.Name))
    return found


def _name(node: ast.expr) -> str:
    """`a.b.c` of a chain of names; empty for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.append(node.id)
    elif parts:
        parts.append("?")
    return ".".join(reversed(parts))


def events(found: list[Statement]) -> list[Event]:
    """What happens for certain: what stands under no condition."""
    made: list[Event] = []
    for statement in found:
        if statement.conditions:
            continue
        node, function = statement.node, statement.function
        if isinstance(node, ast.Import):
            for alias in node.names:
                made += _import(node.lineno, alias.name, function)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            made += _import(node.lineno, node.module, function)
        for call in _own_calls(node):
            what = _initialises(call)
            if what is not None:
                made.append(Event(call.lineno, what, function))
    return made


def _import(line: int, module: str, function: str | None) -> Iterator[Event]:
    library = module.partition(".")[0]
    yield Event(line, f"import {library}", function, library)
    if library in _LOCKS:
        yield Event(line, f"import {library}", function)


def _own_calls(node: ast.stmt) -> Iterator[ast.Call]:
    """The calls in a statement itself, not in the statements under it, nor in what is only defined."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return
    stack: list[ast.AST] = [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)]
    while stack:
        child = stack.pop()
        if isinstance(child, ast.stmt | ast.Lambda | ast.ExceptHandler | ast.match_case):
            continue
        if isinstance(child, ast.Call):
            yield child
        stack.extend(ast.iter_child_nodes(child))


def _initialises(call: ast.Call) -> str | None:
    """How a call initialises CUDA, in words; None where it does not, or that is not known."""
    name = _name(call.func)
    if _INITIALISES.fullmatch(name):
        return f"{name}()"
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if method == "cuda" and name != "torch.cuda":
        return ".cuda()"
    if method == "to" and any(_is_cuda(argument) for argument in call.args):
        return '.to("cuda")'
    if name.startswith("torch.") and any(k.arg == "device" and _is_cuda(k.value) for k in call.keywords):
        return f'{name}(device="cuda")'
    if method == "from_pretrained" and any(
        k.arg == "device_map" and _is_cuda(k.value) for k in call.keywords
    ):
        return 'from_pretrained(device_map="cuda")'
    return None


def _is_cuda(node: ast.expr) -> bool:
    if isinstance(node, ast.Call) and _name(node.func) == "torch.device" and node.args:
        node = node.args[0]
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("cuda")


def before(found: list[Event], line: int, function: str | None) -> Iterator[Event]:
    """The events that certainly come before a line: those above it, at the top or in the same function."""
    for event in found:
        if event.line < line and event.function in (None, function):
            yield event
