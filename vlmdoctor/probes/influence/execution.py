"""Changes to how the model is run on the same batch: shifted positions, another attention back end."""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.knowledge.parameter_names import canonical_name, role_of
from vlmdoctor.probes.influence.baseline import Baseline, change
from vlmdoctor.probes.influence.passes import PassOutput
from vlmdoctor.probes.influence.tokens import Results
from vlmdoctor.probes.positions.rotary_tables import StoredTable, stored_tables

SHIFT = 16
LEAST_SHIFT = 4
_SHARE = 0.1  # of what scrambled positions move: rounded tables leave less
_ROTARY = re.compile(r"rotary|rope", re.IGNORECASE)
_TABLE = re.compile(r"cos|sin|freqs|rope|rotary", re.IGNORECASE)
_BACKENDS = {"eager": "sdpa", "sdpa": "eager"}

Move = Callable[[torch.Tensor], torch.Tensor]


def shift_positions(reference: Baseline) -> Results:
    """All rotary positions moved by the same number: attention sees differences only, so nothing moves."""
    reference.need_logits()
    if reference.inputs.reads_labels or reference.inputs.ids == "decoder_input_ids":
        raise Unavailable("an encoder-decoder has two sequences of positions")
    length = reference.valid.shape[1]
    shift = min(SHIFT, _room(reference, length))
    modules = rotary_modules(reference.trials.model)
    tables = [] if modules else _tables(reference.trials.model, length + LEAST_SHIFT)
    if tables:
        shift = min(shift, min(max(table.tensor.shape[:-1]) for table in tables) - length)
    if not modules and not tables:
        raise Unavailable("no rotary positions were found")
    if shift < LEAST_SHIFT:
        raise Unavailable("the sequence uses all positions, so that there is no room to shift it")

    def seen(move: Move) -> PassOutput:
        moves = _moved_tables(tables, move, length) if tables else _moved_positions(modules, move, length)
        with moves:
            return reference.trials.run()

    # Where the positions of images have several axes, some models mix two of them in one rotation
    # (HunYuan-VL): with one count for all of them the question is the same, and what is asked is certain.
    flat = seen(_one_axis) if modules else reference.before
    shifted = reference.moved(seen(lambda positions: _one_axis(positions) + shift), flat)
    scrambled = reference.moved(seen(lambda positions: positions.amax() - _one_axis(positions)), flat)
    effect = float(scrambled[reference.valid].max())
    if effect <= reference.rounded:
        raise Unavailable("positions hardly move this model's logits")
    at = tuple(canonical_name(name) for name, _ in modules) or tuple(table.name for table in tables)
    allowed = max(_SHARE * effect, reference.rounded)
    yield (
        "positions",
        change(f"all positions by {shift}", shifted, reference.valid, allowed, effect, tables=at),
    )


def switch_backend(reference: Baseline) -> Results:
    """The other of eager and sdpa attention: the same function, so that nothing moves but by rounding."""
    reference.need_logits()
    whole = reference.trials.model
    model: Any = getattr(whole, "get_base_model", lambda: whole)()
    current = getattr(reference.config, "_attn_implementation", None)
    if current not in _BACKENDS or not hasattr(model, "set_attn_implementation"):
        raise Unavailable("the model has no attention back ends that can be switched")
    if not getattr(model, "_supports_sdpa", False) or not model._can_set_attn_implementation():
        raise Unavailable("the model has one attention back end only")
    if reference.setting("attn_logit_softcapping"):
        raise Unavailable("only eager attention caps its scores in this model, by design")
    with _attention(model, _BACKENDS[current]):
        apart = reference.moved(reference.trials.run())
    allowed = max(reference.rounded, 1e-3 * reference.scale)
    yield "backend", change(f"{current} to {_BACKENDS[current]}", apart, reference.valid, allowed, None)


def _one_axis(positions: torch.Tensor) -> torch.Tensor:
    """Positions [axes, B, T] with the first axis in place of all; others as they are."""
    return positions[:1].expand_as(positions) if positions.ndim == 3 else positions


def _room(reference: Baseline, length: int) -> int:
    rope = reference.setting("rope_parameters")
    limits = [reference.setting("max_position_embeddings")]
    if isinstance(rope, dict):
        limits.append(rope.get("original_max_position_embeddings"))
    known = [limit for limit in limits if isinstance(limit, int)]
    return min(known) - length if known else SHIFT


def rotary_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The text's modules that make rotary tables from positions, by name."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if _ROTARY.search(type(module).__name__)
        and role_of(canonical_name(name)) not in ("vision", "projector")
        and "position_ids" in inspect.signature(module.forward).parameters
    ]


@contextlib.contextmanager
def _moved_positions(modules: list[tuple[str, nn.Module]], move: Move, length: int) -> Iterator[None]:
    left: list[nn.Module] = []

    def hook(module: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        names = list(inspect.signature(module.forward).parameters)
        place = names.index("position_ids")
        positions = keywords.get("position_ids", given[place] if place < len(given) else None)
        if not isinstance(positions, torch.Tensor) or positions.shape[-1] != length:
            left.append(module)
            return None
        if "position_ids" in keywords:
            return given, {**keywords, "position_ids": move(positions)}
        return (*given[:place], move(positions), *given[place + 1 :]), keywords

    with contextlib.ExitStack() as hooks:
        for _, module in modules:
            hooks.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield
    if left:
        raise Unavailable("parts of the model count positions of their own, which would stay where they are")


def _tables(model: nn.Module, positions: int) -> list[StoredTable]:
    """Tables of rotary angles that the model holds, of at least so many positions."""
    widths = set()
    for module in model.modules():
        for name, tensor in {**vars(module), **module._buffers}.items():
            if isinstance(tensor, torch.Tensor) and tensor.ndim > 1 and _TABLE.search(name):
                widths |= {int(tensor.shape[-1]), 2 * int(tensor.shape[-1])}
    found = {}
    for width in sorted(widths):
        for table in stored_tables(model, width):
            if table.kind != "frequencies" and role_of(table.name) not in ("vision", "projector"):
                found[table.name] = table
    return [table for table in found.values() if max(table.tensor.shape[:-1]) >= positions]


@contextlib.contextmanager
def _moved_tables(tables: list[StoredTable], move: Move, length: int) -> Iterator[None]:
    for table in tables:
        axis = max(range(table.tensor.ndim - 1), key=lambda a: table.tensor.shape[a])
        rows = move(torch.arange(length, device=table.tensor.device))
        moved = table.tensor.clone()
        moved.narrow(axis, 0, length).copy_(table.tensor.index_select(axis, rows))
        table.replace(moved)
    try:
        yield
    finally:
        for table in tables:
            table.replace(table.tensor)


@contextlib.contextmanager
def _attention(model: Any, backend: str) -> Iterator[None]:
    """The model with another attention back end, in all of its configurations."""
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    for config in list(configs.values()):
        for part in getattr(config, "sub_configs", None) or ():
            inner = getattr(config, part, None)
            if inner is not None:
                configs[id(inner)] = inner
    before = [(config, vars(config).copy()) for config in configs.values() if hasattr(config, "__dict__")]
    try:
        model.set_attn_implementation(backend)
        yield
    finally:
        for config, attributes in before:
            vars(config).clear()
            vars(config).update(attributes)
