"""Where the way of a gradient is cut in a forward pass: the lines of source, and taking them out on trial."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.overrides import TorchFunctionMode

from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.probes.gradient.detach_sites import Cut, place, running, switched_off, switching_off

_DETACHES = (torch.Tensor.detach, torch.Tensor.detach_, torch.detach)
_DATA = torch.Tensor.data.__get__  # type: ignore[attr-defined]
# They give a float tensor that was never meant to have a gradient.
_MADE_ANEW = ("zeros", "ones", "full", "empty", "rand", "arange", "bernoulli", "multinomial", "eye")
_COPIES = ("tensor", "as_tensor", "new_tensor", "asarray")
_NUMBERS = ("numpy", "tolist", "__array__")
_LEFT = 32  # tensors that are remembered as gone into numbers, and as detached: the latest ones


class Tracer(TorchFunctionMode):
    """Notes the cuts of a forward pass, in their order; passes those in `repaired` without a cut."""

    def __init__(self, repaired: Collection[Cut] = ()) -> None:
        super().__init__()
        self.repaired = frozenset(repaired)
        self.found: dict[Cut, nn.Module | None] = {}
        self._off: Cut | None = None  # what switched gradients off, where Python's own call did
        self._detached: deque[torch.Tensor] = deque(maxlen=_LEFT)
        self._left: deque[tuple[Cut, torch.Tensor]] = deque(maxlen=_LEFT)

    def __torch_function__(self, function: Any, kinds: Any, arguments: Any = (), keywords: Any = None) -> Any:
        keywords = keywords or {}
        if function is torch._C._set_grad_enabled:
            return self._switch(*arguments)
        name = getattr(function, "__name__", "")
        if name in _NUMBERS:
            return self._into_numbers(function, *arguments, **keywords)
        if self._left and name != "__get__":
            arguments, keywords = self._out_of_numbers(arguments), self._out_of_numbers(keywords)
        with_gradient = any(_requires_grad(value) for value in _tensors((arguments, keywords)))
        if not with_gradient or not _can_cut(function):
            return function(*arguments, **keywords)
        cut = self._explicit(function)
        if cut is not None:
            if cut.kind != "copy":
                self._detached.append(arguments[0])
            if self._meets(cut):
                return _kept(function, arguments)
            return function(*arguments, **keywords)
        if not torch.is_grad_enabled() and self._meets(self._off or switched_off()):
            with torch.inference_mode(False), torch.enable_grad():
                return function(*arguments, **keywords)
        return function(*arguments, **keywords)

    def _meets(self, cut: Cut | None) -> bool:
        """Notes a cut; whether it is to be passed without one."""
        if cut is not None:
            self.found.setdefault(cut, running())
        return cut in self.repaired

    def _explicit(self, function: Any) -> Cut | None:
        if function in _DETACHES:
            kind = "detach"
        elif function == _DATA:
            kind = "data"
        elif getattr(function, "__name__", "") in _COPIES:
            kind = "copy"
        else:
            return None
        where = place()
        return None if where is None else Cut(kind, *where)

    def _switch(self, on: bool) -> None:
        """What `torch.no_grad` and `set_grad_enabled` call, however they are written down."""
        if on:
            self._off = None
        elif self._off is None:
            self._off = switching_off()
        torch._C._set_grad_enabled(on)

    def _into_numbers(self, function: Any, tensor: torch.Tensor, *more: Any, **keywords: Any) -> Any:
        source = tensor if _requires_grad(tensor) else _equal_to(tensor, self._detached)
        where = None if source is None or tensor.numel() < 2 else place()
        if source is not None and where is not None:
            cut = Cut("numbers", *where)
            if self._meets(cut):
                self._left.append((cut, source))
        # With a detach in front taken out, numpy would refuse it.
        return function(tensor.detach() if self.repaired else tensor, *more, **keywords)

    def _out_of_numbers(self, value: Any) -> Any:
        """A function's arguments, with the tensors themselves for those made anew from their numbers."""
        if isinstance(value, torch.Tensor):
            if value.requires_grad or not value.is_floating_point():
                return value
            source = _equal_to(value, self._sources())
            return value if source is None else source.reshape(value.shape).to(value)
        if type(value) in (tuple, list):
            return type(value)(self._out_of_numbers(part) for part in value)
        if type(value) is dict:
            return {key: self._out_of_numbers(part) for key, part in value.items()}
        return value

    def _sources(self) -> Iterator[torch.Tensor]:
        """What went into numbers: each tensor, and all that did at one place, as of a batch row by row."""
        yield from (source for _, source in self._left)
        for one in dict.fromkeys(cut for cut, _ in self._left):
            yield torch.cat([source.flatten() for cut, source in self._left if cut == one])


def cuts_in(run: Callable[[], Any], without: Collection[Cut] = ()) -> dict[Cut, nn.Module | None]:
    """The cuts that `run`, a forward pass with gradients enabled, comes across, in their order.

    Each with the module that was running when it was met first; None outside of any. Those of `without`
    are taken out, so that those behind them are met.
    """
    tracer = Tracer(without)
    with _without_compiling(), tracer, _watching_checkpoints(tracer):
        run()
    return tracer.found


@contextmanager
def repaired(cuts: Collection[Cut]) -> Iterator[None]:
    """Inside, a forward pass goes on as if these cuts were not there."""
    tracer = Tracer(cuts)
    with _without_compiling(), tracer, _watching_checkpoints(tracer):
        yield


def outputs_of(model: nn.Module, names: Collection[str], run: Callable[[], Any]) -> dict[str, str]:
    """The highest modules all of whose parameters are among `names`, and what came out of them in `run`.

    That is `never` (not called), `graph` (a tensor that a gradient could come back to) or `none`.
    """
    seen: dict[str, str] = {}
    chosen, handles = set(names), []
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
        where = place()
        cut = None if where is None else Cut("checkpoint", *where)
        return run(*arguments) if tracer._meets(cut) else apply(run, preserve, *arguments)

    function.apply = watched  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del function.apply  # the inherited one is seen again
        else:
            function.apply = own  # type: ignore[method-assign]


def _can_cut(function: Any) -> bool:
    name = getattr(function, "__name__", "").removeprefix("new_")
    return not name.startswith(_MADE_ANEW) or name in _COPIES


def _kept(function: Any, arguments: tuple[Any, ...]) -> Any:
    """What an explicit cut would give, with the gradient."""
    if function in _DETACHES or function == _DATA:
        return arguments[0]
    source = next(value for value in _tensors(arguments[-1:] or arguments))
    return source.clone()


def _equal_to(tensor: torch.Tensor, among: Iterable[torch.Tensor]) -> torch.Tensor | None:
    """The first that holds these very numbers, in whatever shape."""
    for source in among:
        if source.numel() == tensor.numel() > 1:
            numbers = source.detach().reshape(tensor.shape).to(tensor)
            if torch.equal(numbers, tensor.detach()):
                return source
    return None


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
