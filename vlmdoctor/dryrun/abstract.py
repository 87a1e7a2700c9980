"""The executor: real integers and booleans, abstract floats."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from vlmdoctor.dryrun.repeated import Repeated
from vlmdoctor.dryrun.tensor_tree import changed, tensors_in
from vlmdoctor.dryrun.unknown import ValueUnknown
from vlmdoctor.dryrun.unwritten import UNWRITTEN
from vlmdoctor.dryrun.value_readers import Functions

aten = torch.ops.aten

# Larger results become abstract even where every input is real: masks of length times length.
KEPT_ELEMENTS = 1 << 23

_META = torch.device("meta")
_CPU = torch.device("cpu")
# Floats made by these are values that somebody will look at; those made by the other factories are room
# that gets written into.
_VALUED = {aten.arange, aten.linspace, aten.logspace, aten.scalar_tensor, aten.ones, aten.full}
# No float in a dry run is infinite or not a number: the one assumption about values.
_FINITE = {
    aten.isnan: False,
    aten.isinf: False,
    aten.isfinite: True,
    aten.isposinf: False,
    aten.isneginf: False,
}
# Copies of an abstract tensor's shape that are filled with one number, and where their arguments say it.
_FILLING: dict[Any, Callable[[Any], Any]] = {
    aten.full_like: lambda args: args[1],
    aten.ones_like: lambda args: 1,
    aten.zeros_like: lambda args: 0,
    aten.new_full: lambda args: args[2],
    aten.new_ones: lambda args: 1,
    aten.new_zeros: lambda args: 0,
}
_INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_, aten._unsafe_index}
# What these give holds nothing yet, and what these write leaves nothing of that.
_EMPTY = {aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.new_empty_strided}
_OVERWRITING = {aten.copy_, aten.fill_, aten.zero_, aten.random_, aten.bernoulli_}
_NEEDS_VALUES = {
    aten._local_scalar_dense,
    aten.nonzero,
    aten.equal,
    aten.is_nonzero,
    aten.unique_consecutive,
    aten._unique2,
    aten.unique_dim,
    aten.bincount,
}


class Abstract(TorchDispatchMode):
    """Executes every operator with real integers and abstract floats.

    Args:
        observe: Called as `observe(func, args, kwargs, out)` after every operator.
        functions: What runs in the place of functions of torch, such as attention.
        spread: Whether which entries of activations are the largest (experts that tokens choose) is assumed:
            each in turn, so that all are chosen as often.
    """

    def __init__(
        self,
        observe: Callable[..., None] | None = None,
        functions: Mapping[Any, Callable[..., Any]] | None = None,
        spread: bool = False,
    ) -> None:
        super().__init__()
        self._observe = observe
        # What abstract tensors hold that were filled with one number, until something is written into them.
        self._filled: dict[int, tuple[weakref.ref[Any], Any]] = {}
        self._functions = Functions(functions or {})
        self._repeated = Repeated()
        self._spread = spread

    def __enter__(self) -> Abstract:
        self._functions.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._functions.__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        out = self._run(func, args, kwargs)
        if self._observe is not None:
            self._observe(func, args, kwargs, out)
        return out

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        packet = func.overloadpacket
        tensors = tensors_in((args, kwargs))
        abstract = [t for t in tensors if t.is_meta]
        if not abstract:
            return self._real(func, packet, args, kwargs, tensors)
        if packet in _FINITE:
            return torch.full(args[0].shape, _FINITE[packet], dtype=torch.bool)
        if packet in _NEEDS_VALUES:
            raise ValueUnknown(f"aten.{packet.__name__}")
        if packet is aten._to_copy:
            return self._converted(func, args, kwargs)
        if "device" in kwargs or packet in _FILLING:
            # zeros_like, new_ones and the like: the values are not those of the input.
            dtype = kwargs.get("dtype") or tensors[0].dtype
            if not _is_float(dtype):
                return _noted(packet, func(*_emptied(args), **_placed(kwargs, _CPU)))
            made = func(*args, **_placed(kwargs, _META))
            if packet in _FILLING:
                storage = made.untyped_storage()
                self._filled[storage._cdata] = (weakref.ref(storage), _FILLING[packet](args))
            return made
        if _writes(func) and isinstance(args[0], torch.Tensor) and args[0].is_meta:
            self._filled.pop(_storage(args[0]), None)
        if packet in _INDEXING:
            args = (args[0], self._indices(args[0], args[1]), *args[2:])
        elif packet is aten.embedding:
            self._check_range(args[1], args[0].shape[0], "token ids")
        elif packet is aten.masked_scatter or packet is aten.masked_scatter_:
            self._check_room(*args[:3])
        elif packet is aten.masked_fill or packet is aten.masked_fill_:
            # A scalar tensor that was made on the device of the target, whose shape function insists on that.
            args = (*args[:2], *changed(lambda t: _to_meta(t, always=True), args[2:]))
        elif packet is aten.masked_select:
            count = int(torch.broadcast_to(self._known(args[1], packet), args[0].shape).sum())
            return args[0].new_empty((count,))
        elif packet is aten.masked_scatter_backward:
            self._known(args[1], packet)
            return args[0].new_empty(args[2])
        if _writes_into_real(func, args):
            return self._written(func, args, kwargs)
        if len(abstract) < len(tensors):
            args, kwargs = changed(_to_meta, args), changed(_to_meta, kwargs)
        if packet is aten._grouped_mm and args[0].dtype is not torch.bfloat16:
            # Its shape function knows bfloat16 alone; kernels take the other dtypes too.
            halved = changed(_as_bfloat16, args)
            return func(*halved, **kwargs).to(args[0].dtype)
        out = self._repeated(func, args, kwargs)
        return _evenly(out, args) if self._spread and packet is aten.topk else out

    def _real(self, func: Any, packet: Any, args: Any, kwargs: dict[str, Any], tensors: list[Any]) -> Any:
        if not tensors and "device" in kwargs:
            room = packet not in _VALUED and _is_float(_dtype_made(func, args, kwargs))
            return _noted(packet, func(*args, **_placed(kwargs, _META if room else _CPU)))
        if UNWRITTEN and any(t in UNWRITTEN for t in tensors):
            return self._real_unknown(func, packet, args, kwargs, tensors)
        if "device" in kwargs:
            dtype = kwargs.get("dtype") or tensors[0].dtype
            room = packet is not aten._to_copy and _is_float(dtype)
            return _noted(packet, func(*args, **_placed(kwargs, _META if room else _CPU)))
        out = func(*args, **kwargs)
        if (
            isinstance(out, torch.Tensor)
            and out.numel() > KEPT_ELEMENTS
            and _is_float(out.dtype)
            and _fresh(func)
        ):
            return _to_meta(out)
        return out

    def _real_unknown(
        self, func: Any, packet: Any, args: Any, kwargs: dict[str, Any], tensors: list[Any]
    ) -> Any:
        """An operator on real tensors of which some hold what nobody wrote."""
        if packet in _EMPTY:
            return _noted(packet, func(*args, **_placed(kwargs, _CPU)))
        if "device" in kwargs and packet is not aten._to_copy:  # zeros_like and the like need no values
            return func(*args, **_placed(kwargs, _CPU))
        if _writes(func):
            sources = [t for t in tensors if t is not args[0] and t in UNWRITTEN]
            out = func(*args, **kwargs)
            if not sources and packet in _OVERWRITING:
                UNWRITTEN.written(args[0])
            elif sources:
                UNWRITTEN.add(args[0])
            return out
        if packet in _NEEDS_VALUES:
            raise ValueUnknown(f"aten.{packet.__name__}")
        out = func(*args, **_placed(kwargs, _CPU))
        for tensor in tensors_in(out):
            if not tensor.is_meta and tensor not in UNWRITTEN:  # else it is a view
                UNWRITTEN.add(tensor)
        return out

    def _converted(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A tensor in another dtype; one that was filled with a number has it still."""
        source, dtype = args[0], kwargs.get("dtype")
        held, value = self._filled.get(_storage(source), (None, 0))
        if held is None or held() is None or dtype is None or _is_float(dtype):
            return func(*args, **_placed(kwargs, _META))
        return torch.full(source.shape, value, dtype=source.dtype).to(dtype)

    def _indices(self, indexed: torch.Tensor, indices: Any) -> list[Any]:
        """Boolean indices as integer ones, all of them abstract, after a look at their range."""
        found: list[Any] = []
        dimension = 0
        for index in indices:
            if index is None:
                found.append(None)
                dimension += 1
            elif index.dtype in (torch.bool, torch.uint8):
                mask = self._known(index, aten.index)
                expected = tuple(indexed.shape[dimension : dimension + mask.ndim])
                if tuple(mask.shape) != expected:
                    raise IndexError(
                        f"The shape of the mask {list(mask.shape)} at index {dimension} does not match the "
                        f"shape of the indexed tensor {list(indexed.shape)} at index {dimension}"
                    )
                found += [_to_meta(column, always=True) for column in mask.nonzero().unbind(1)]
                dimension += mask.ndim
            else:
                self._check_range(index, indexed.shape[dimension], "indices", negative=True)
                found.append(_to_meta(index, always=True))
                dimension += 1
        return found

    def _known(self, tensor: torch.Tensor, packet: Any) -> torch.Tensor:
        if tensor.is_meta or tensor in UNWRITTEN:
            raise ValueUnknown(
                f"aten.{packet.__name__}",
                "uses a mask computed from activations: its shape depends on values",
            )
        return tensor

    def _check_range(self, index: torch.Tensor, size: int, what: str, negative: bool = False) -> None:
        if index.is_meta or not index.numel() or index in UNWRITTEN:
            return
        low, high = (int(value) for value in index.aminmax())
        if high >= size or low < (-size if negative else 0):
            outside = high if high >= size else low
            raise IndexError(
                f"index out of range: {what} go up to {outside}, there are {size} rows"
                if outside == high
                else f"index out of range: {what} go down to {outside}"
            )

    def _check_room(self, target: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> None:
        count = int(torch.broadcast_to(self._known(mask, aten.masked_scatter), target.shape).sum())
        if count > source.numel():
            raise RuntimeError(
                f"masked_scatter: {count} places are to be filled, the source has {source.numel()} values"
            )

    def _written(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """An abstract value written into a real tensor: from now on nobody knows what it holds."""
        real = args[0]
        if _is_float(real.dtype) and real.numel() > 1:
            raise ValueUnknown(str(func), "writes abstract values into a real tensor of floats")
        func(*changed(_to_meta, args), **changed(_to_meta, kwargs))
        UNWRITTEN.add(real)
        return real


def _noted(packet: Any, made: Any) -> Any:
    """`made`, with a note where it is real and holds nothing yet."""
    if packet in _EMPTY and not made.is_meta:
        UNWRITTEN.add(made)
    return made


def _evenly(out: Any, args: Any) -> Any:
    """The result of `topk` with indices that take each place of its last dimension in turn."""
    values, indices = out
    chosen = indices.shape[-1] if indices.ndim else 0
    last = len(args) < 3 or args[2] in (-1, indices.ndim - 1)
    if not chosen or not last or indices.numel() > KEPT_ELEMENTS:
        return out
    return values, torch.arange(indices.numel()).view(indices.shape) % args[0].shape[-1]


def _to_meta(tensor: torch.Tensor, always: bool = False) -> torch.Tensor:
    # A real scalar may meet tensors of any device, and promotes dtypes otherwise than a tensor does.
    if tensor.is_meta or (tensor.ndim == 0 and not always):
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=_META)


def _as_bfloat16(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor


def _emptied(args: Any) -> Any:
    """Abstract tensors as real ones without content: only their shape and dtype are asked for."""
    return changed(lambda t: torch.empty(1, dtype=t.dtype).expand(t.shape), args)


def _placed(kwargs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {**kwargs, "device": device, "pin_memory": None} if "device" in kwargs else kwargs


def _dtype_made(func: Any, args: Any, kwargs: dict[str, Any]) -> torch.dtype:
    if kwargs.get("dtype") is not None:
        return kwargs["dtype"]
    if func.overloadpacket is aten.full:
        value = args[1]
        return (
            torch.bool
            if isinstance(value, bool)
            else torch.int64
            if isinstance(value, int)
            else torch.float32
        )
    return torch.int64 if func.overloadpacket in (aten.randint, aten.randperm) else torch.float32


def _is_float(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point or dtype.is_complex


@functools.cache
def _fresh(func: Any) -> bool:
    return all(result.alias_info is None for result in func._schema.returns)


@functools.cache
def _writes(func: Any) -> bool:
    """Whether an operator writes into its first argument."""
    alias = func._schema.arguments[0].alias_info if func._schema.arguments else None
    return alias is not None and alias.is_write


def _writes_into_real(func: Any, args: Any) -> bool:
    return bool(args) and isinstance(args[0], torch.Tensor) and not args[0].is_meta and _writes(func)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata
