"""Finding the tables among a model's buffers, and making them anew."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.buffers import Buffers, Table
from vlmdoctor.knowledge.parameter_names import canonical_name, role_of
from vlmdoctor.probes.influence.passes import innermost
from vlmdoctor.probes.positions.rotary_tables import stored_tables
from vlmdoctor.subject import Subject

MOST_POSITIONS = 4096
OFF = 0.1
_ROTARY = re.compile(r"rotary|rope", re.IGNORECASE)
_FREQUENCIES = re.compile(r"(\w*_)?(inv_freqs?|inverse_frequenc\w+|freqs)")
_TABLE = re.compile(r"(\w*_)?(cos|sin|freqs_cis|freqs_cos|freqs_sin)(_\w+)?")
_CHANGES_WITH_LENGTH = ("dynamic", "longrope")


def probe(subject: Subject, gather: Callable[[type], object]) -> Buffers:
    """Reads the buffers and compares them with copies made anew; runs nothing of the model's forward."""
    if subject.model is None:
        raise Unavailable("no model was given")
    if any(buffer.is_meta for buffer in subject.model.buffers()):
        raise Unavailable("the model has no weights (it is on the meta device)")
    return Buffers(tables=tuple(read_tables(subject.model)))


def read_tables(model: nn.Module) -> Iterator[Table]:
    """Every buffer (or plain tensor) that is known to be a table."""
    model = innermost(model)
    positions = _positions(model)
    for prefix, module in model.named_modules():
        copy = fresh(module) if _ROTARY.search(type(module).__name__) else None
        for attribute, tensor in {**vars(module), **module._buffers}.items():
            if not isinstance(tensor, torch.Tensor) or isinstance(tensor, nn.Parameter) or not tensor.numel():
                continue
            name = canonical_name(f"{prefix}.{attribute}" if prefix else attribute)
            if _is_spare(module, attribute):
                continue
            if attribute == "position_ids" and not tensor.is_floating_point():
                yield _numbered(name, module, tensor)
            elif _FREQUENCIES.fullmatch(attribute) and tensor.is_floating_point() and tensor.ndim == 1:
                rebuilt = getattr(copy, attribute, None)
                yield _frequencies(model, name, prefix, tensor, rebuilt, positions)
            elif _TABLE.fullmatch(attribute) and tensor.ndim > 1:
                yield _stored(model, name, prefix, tensor)


def _numbered(name: str, module: nn.Module, tensor: torch.Tensor) -> Table:
    counted = tensor.numel()
    wrong = counted > 2 and (bool((tensor < 0).any()) or int(tensor.max()) > 4 * counted or not tensor.any())
    return Table(
        name=name,
        owner=type(module).__name__,
        dtype=_dtype(tensor),
        problem="out of range" if wrong else None,
    )


def _frequencies(
    model: nn.Module, name: str, prefix: str, tensor: torch.Tensor, fresh: Any, positions: int
) -> Table:
    module = model.get_submodule(prefix)
    kind = type(module).__name__
    held = tensor.detach().double().cpu()
    if not bool(held.isfinite().all()):
        return Table(name=name, owner=kind, dtype=_dtype(tensor), problem="not finite")
    theta, copy = None, None
    for found in stored_tables(module, 2 * len(held)):
        if found.tensor is tensor and found.kind == "frequencies":
            theta, copy = found.theta, found.rebuilt(2 * len(held)).double()
            # A table is read off to a few digits: its own numbers tell more, unless they are rounded.
            copy = 1.0 / theta ** (torch.arange(0, 2 * len(held), 2).double() / (2 * len(held)))
            copy = copy if tensor.element_size() < 4 else held
    if isinstance(fresh, torch.Tensor) and fresh.shape == tensor.shape and _settled(module):
        copy = fresh.detach().double().cpu()
    problem = None
    if len(held) > 1 and bool((held == held[0]).all()):
        problem = "all alike"
    elif copy is None and bool((held < 0).any()):
        problem = "not positive"
    wanted = None if role_of(name) in ("vision", "projector") else _config_theta(model, prefix)
    if copy is None or problem is not None:
        return Table(
            name=name, owner=kind, dtype=_dtype(tensor), problem=problem, theta=theta, config_theta=wanted
        )
    steps = torch.arange(positions).double()[:, None]
    apart = ((steps * held).cos() - (steps * copy).cos()).abs().amax(dim=1)
    off = (apart > OFF).nonzero()
    return Table(
        name=name,
        owner=kind,
        dtype=_dtype(tensor),
        theta=theta,
        config_theta=wanted,
        rebuilt=True,
        rounded=bool(torch.allclose(held, copy, rtol=8e-3 if _is_coarse(tensor, copy) else 1e-5, atol=1e-7)),
        error=float(apart.max()),
        positions=positions,
        first_wrong=int(off[0]) if len(off) else None,
    )


def _stored(model: nn.Module, name: str, prefix: str, tensor: torch.Tensor) -> Table:
    module = model.get_submodule(prefix)
    held = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    problem, theta = None, None
    if not bool(held.isfinite().all()):
        problem = "not finite"
    elif bool((held == held.flatten()[0]).all()) and held.numel() > 2:
        problem = "all alike"
    elif held.is_floating_point() and float(held.abs().max()) > 10:
        problem = "too large"
    else:
        widths = (int(tensor.shape[-1]), 2 * int(tensor.shape[-1]))
        theta = next((t.theta for w in widths for t in stored_tables(module, w) if t.tensor is tensor), None)
    wanted = None if role_of(name) in ("vision", "projector") else _config_theta(model, prefix)
    return Table(
        name=name,
        owner=type(module).__name__,
        dtype=_dtype(tensor),
        problem=problem,
        theta=theta,
        config_theta=wanted,
    )


def fresh(module: nn.Module) -> nn.Module | None:
    """The module made anew from its own configuration and attributes; None where that can't be done."""
    given = {}
    for name, parameter in inspect.signature(type(module).__init__).parameters.items():
        if name == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if hasattr(module, name):
            given[name] = getattr(module, name)
        elif parameter.default is parameter.empty:
            return None
    given.pop("device", None)
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float32)
        with torch.random.fork_rng(devices=[]), torch.device("cpu"):
            return type(module)(**given)
    except Exception:
        return None
    finally:
        torch.set_default_dtype(default)


def _settled(module: nn.Module) -> bool:
    """Whether the frequencies stay as they were made, however long a text becomes."""
    kinds = getattr(module, "rope_type", None)
    kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
    return not any(kind in _CHANGES_WITH_LENGTH for kind in kinds)


def _is_spare(module: nn.Module, attribute: str) -> bool:
    """Whether it is the copy of the frequencies that only rotary types which change with length read."""
    own = attribute.replace("original_", "", 1)
    spare = own != attribute and _FREQUENCIES.fullmatch(own) is not None and hasattr(module, own)
    # A class of the user's own may read it whenever it likes.
    return spare and hasattr(module, "rope_type") and _settled(module)


def _is_coarse(tensor: torch.Tensor, copy: torch.Tensor) -> bool:
    """Whether the numbers are such as a half-precision table has, whatever dtype holds them now."""
    held = tensor.detach().cpu()
    return any(
        torch.equal(held.float(), copy.to(kind).float()) for kind in (torch.bfloat16, torch.float16)
    ) or (held.element_size() < 4)


def _config_theta(model: nn.Module, prefix: str) -> float | None:
    """The base in the configuration that the module `prefix` is built from: its own, or of what holds it."""
    parts = prefix.split(".")
    around = [model, *(model.get_submodule(".".join(parts[: i + 1])) for i in range(len(parts)) if prefix)]
    config = next((c for m in reversed(around) if (c := getattr(m, "config", None)) is not None), None)
    config = getattr(config, "text_config", None) or config
    rope = getattr(config, "rope_parameters", None)
    if isinstance(rope, dict):
        theta = rope.get("rope_theta") if rope.get("rope_type", "default") == "default" else None
    else:
        scaled = getattr(config, "rope_scaling", None)
        theta = None if scaled else getattr(config, "rope_theta", None)
    return float(theta) if isinstance(theta, int | float) and theta > 1 else None


def _positions(model: nn.Module) -> int:
    """How many positions the model may have, up to a bound: the batch at hand may be a short one."""
    config = getattr(model, "config", None)
    config = getattr(config, "text_config", None) or config
    longest = getattr(config, "max_position_embeddings", None)
    return min(longest, MOST_POSITIONS) if isinstance(longest, int) else MOST_POSITIONS


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
