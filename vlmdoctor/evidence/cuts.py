"""Where the way of a gradient is cut in a forward pass: the lines of source, and taking them out on trial."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import types
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.overrides import TorchFunctionMode

from vlmdoctor.evidence.raised import is_users
from vlmdoctor.subject import canonical_name

_DETACHES = (torch.Tensor.detach, torch.Tensor.detach_, torch.detach)
_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
# They give a float tensor that was never meant to have a gradient.
_MADE_ANEW = ("zeros", "ones", "full", "empty", "rand", "arange", "bernoulli", "multinomial", "eye")
_COPIES = ("tensor", "as_tensor", "new_tensor", "asarray")
_NO_GRAD = ("no_grad", "inference_mode", "set_grad_enabled")
_TORCH = str(Path(torch.__file__).parent)
_CUSTOM_FUNCTION = str(Path(_TORCH) / "autograd" / "function.py")
_CHECKPOINT = torch.utils.checkpoint.__file__
_HERE = str(Path(__file__).resolve().parents[1])


@dataclass(frozen=True)
class Cut:
    """A line at which tensors that have a gradient to come lose it.

    Attributes:
        kind: `detach`, `data`, `no_grad`, `copy` (a tensor made anew from the numbers) or `checkpoint`
            (reentrant checkpointing of inputs that require no gradient).
        file: The source file.
        line: The line: that of the `with` or of the decorated function where gradients are switched off.
        function: The function that is wrapped to run without gradients; "" where none is.
    """

    kind: str
    file: str
    line: int
    function: str = ""


class Tracer(TorchFunctionMode):
    """Notes the cuts of a forward pass, in their order; passes those in `mended` without a cut."""

    def __init__(self, mended: Collection[Cut] = ()) -> None:
        super().__init__()
        self.mended = frozenset(mended)
        self.found: dict[Cut, nn.Module | None] = {}

    def __torch_function__(self, function: Any, kinds: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        with_gradient = any(_requires_grad(value) for value in _tensors((arguments, keywords)))
        if not with_gradient or not _can_cut(function):
            return function(*arguments, **keywords)
        cut = self._explicit(function)
        if cut is not None:
            self.found.setdefault(cut, _running())
            if cut in self.mended:
                return _kept(function, arguments)
            return function(*arguments, **keywords)
        if torch.is_grad_enabled():
            return function(*arguments, **keywords)
        cut = _switched_off()
        if cut is not None:
            self.found.setdefault(cut, _running())
        if cut in self.mended:
            with torch.inference_mode(False), torch.enable_grad():
                return function(*arguments, **keywords)
        return function(*arguments, **keywords)

    def _explicit(self, function: Any) -> Cut | None:
        if function in _DETACHES:
            kind = "detach"
        elif function == _DATA:
            kind = "data"
        elif getattr(function, "__name__", "") in _COPIES:
            kind = "copy"
        else:
            return None
        place = _place()
        return None if place is None else Cut(kind, *place)


def cuts_in(run: Callable[[], Any]) -> dict[Cut, nn.Module | None]:
    """The cuts that `run`, a forward pass with gradients enabled, comes across, in their order.

    Each with the module that was running when it was met first; None outside of any.
    """
    tracer = Tracer()
    with _without_compiling(), tracer, _watching_checkpoints(tracer):
        run()
    return tracer.found


@contextmanager
def mended(cuts: Collection[Cut]) -> Iterator[None]:
    """Inside, a forward pass goes on as if these cuts were not there."""
    tracer = Tracer(cuts)
    with _without_compiling(), tracer, _watching_checkpoints(tracer):
        yield


def outputs_of(model: nn.Module, names: Collection[str], run: Callable[[], Any]) -> dict[str, str]:
    """The highest modules all of whose parameters are among `names`, and what came out of them in `run`.

    That is `never` (not called), `graph` (a tensor that a gradient could come back to) or `none`.
    """
    chosen, seen, handles = set(names), {}, []
    for raw_name, module in model.named_modules():
        name = canonical_name(raw_name + ".").rstrip(".")
        own = [canonical_name(f"{raw_name}.{n}" if raw_name else n) for n, _ in module.named_parameters()]
        above = any(name == high or name.startswith(high + ".") for high in seen)
        if own and not above and chosen.issuperset(own):
            seen[name] = "never"

            def note(_: Any, __: Any, output: Any, name: str = name) -> None:
                parts = output if isinstance(output, torch.Tensor | tuple | list | dict) else vars(output)
                seen[name] = "graph" if any(_requires_grad(t) for t in _tensors(parts)) else "none"

            handles.append(module.register_forward_hook(note))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return seen


@contextmanager
def _without_compiling() -> Iterator[None]:
    # Compiled code runs past Python's own calls, which are what is watched here.
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def _watching_checkpoints(tracer: Tracer) -> Iterator[None]:
    """Reentrant checkpointing gives no gradient where none of its inputs requires one."""
    function = torch.utils.checkpoint.CheckpointFunction
    own, apply = vars(function).get("apply"), function.apply

    def watched(run: Callable[..., Any], preserve: bool, *arguments: Any) -> Any:
        if any(_requires_grad(value) for value in _tensors(arguments)) or not torch.is_grad_enabled():
            return apply(run, preserve, *arguments)
        place = _place()
        cut = None if place is None else Cut("checkpoint", *place)
        if cut is not None:
            tracer.found.setdefault(cut, _running())
        return run(*arguments) if cut in tracer.mended else apply(run, preserve, *arguments)

    function.apply = watched  # type: ignore[assignment]
    try:
        yield
    finally:
        if own is None:
            del function.apply  # the inherited one is seen again
        else:
            function.apply = own  # type: ignore[assignment]


def _can_cut(function: Any) -> bool:
    name = getattr(function, "__name__", "").removeprefix("new_")
    return not name.startswith(_MADE_ANEW) or name in _COPIES


def _kept(function: Any, arguments: tuple[Any, ...]) -> Any:
    """What an explicit cut would give, with the gradient."""
    if function in _DETACHES or function == _DATA:
        return arguments[0]
    source = next(value for value in _tensors(arguments[-1:] or arguments))
    return source.clone()


def _requires_grad(value: torch.Tensor) -> bool:
    return value.is_floating_point() and value.requires_grad


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))


def _frames() -> Iterator[types.FrameType]:
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if not frame.f_code.co_filename.startswith(_HERE):
            yield frame
        frame = frame.f_back


def _place() -> tuple[str, int] | None:
    """(file, line) of the innermost frame of the user's own code, else of any code but torch's."""
    first = None
    for frame in _frames():
        file = frame.f_code.co_filename
        if is_users(file):
            return file, frame.f_lineno
        if first is None and not file.startswith(_TORCH):
            first = file, frame.f_lineno
        if isinstance(frame.f_locals.get("self"), nn.Module) and first is not None:
            return first  # a library's module cut it: its own line, not that of whoever called it
    return first


def _running() -> nn.Module | None:
    """The innermost module whose forward is being run."""
    modules = (frame.f_locals.get("self") for frame in _frames())
    return next((module for module in modules if isinstance(module, nn.Module)), None)


def _switched_off() -> Cut | None:
    """What has switched gradients off around the calling code; None where autograd itself has."""
    inner = None
    for frame in _frames():
        file, line = frame.f_code.co_filename, frame.f_lineno
        if file == _CHECKPOINT or (file == _CUSTOM_FUNCTION and frame.f_code.co_name == "apply"):
            return None  # the inside of an autograd function, which has a backward of its own
        if file.startswith(_TORCH):
            wrapped = frame.f_locals.get("func") if frame.f_code.co_name == "decorate_context" else None
            if wrapped is not None and not torch.is_grad_enabled():
                own = inspect.unwrap(wrapped)
                code = getattr(own, "__code__", None)
                if code is not None:
                    return Cut("no_grad", code.co_filename, code.co_firstlineno, own.__qualname__)
            continue
        inner = inner or (file, line)
        starts = _no_grad_blocks(file)
        around = [first for first, last in starts if first <= line <= last]
        if around:
            return Cut("no_grad", file, max(around))
    return None if inner is None else Cut("no_grad", *inner)


@functools.lru_cache(maxsize=256)
def _no_grad_blocks(file: str) -> tuple[tuple[int, int], ...]:
    """(first, last) lines of the `with torch.no_grad():` blocks of a file, conditional ones included."""
    try:
        tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
        return ()
    return tuple(
        (node.lineno, node.end_lineno or node.lineno)
        for node in ast.walk(tree)
        if isinstance(node, ast.With | ast.AsyncWith)
        and any(
            isinstance(part, ast.Attribute | ast.Name)
            and (part.attr if isinstance(part, ast.Attribute) else part.id) in _NO_GRAD
            for item in node.items
            for part in ast.walk(item.context_expr)
        )
    )
