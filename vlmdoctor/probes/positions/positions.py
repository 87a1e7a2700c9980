"""Catching positions on their way into a model's tables, and asking the model for its own.

Shapes:
    A axes (time, height, width), B rows, T tokens
"""

from __future__ import annotations

import functools
import inspect
import itertools
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.positions import Counted, ExpectedPositions, Place, Positions
from vlmdoctor.knowledge.config_fields import text_config
from vlmdoctor.knowledge.parameter_names import canonical_name, role_of
from vlmdoctor.plain_text import raised
from vlmdoctor.probes.batch.fields import Inputs, placeholders
from vlmdoctor.probes.data.vocabulary import max_positions
from vlmdoctor.probes.forward import passed
from vlmdoctor.probes.influence.passes import innermost
from vlmdoctor.probes.listening import Listening, Outcome
from vlmdoctor.probes.one_pass import observed
from vlmdoctor.sandbox.restore import copy_of
from vlmdoctor.subject import Subject

OWN = "get_rope_index"  # what every family with positions in several axes calls it
_GIVEN = ("position_ids", "positions", "pos_ids")
_TABLES = re.compile(r"rotary|rope(?!r)|(^|_)wpe|pos(ition)?(al)?_?(emb|enc)|embed_positions", re.IGNORECASE)


def probe(subject: Subject, gather: Gatherer) -> Positions:
    """Catches what tables are given in the one pass."""
    passed(gather)
    return observed(gather, "vlmdoctor.probes.positions.positions")


def observer(subject: Subject, gather: Gatherer) -> TablePositions:
    """Looks at what tables of positions are given; raises `Unavailable` for a batch without token ids."""
    return TablePositions(subject)


class TablePositions:
    """The positions that reach a model's tables, and the model's own."""

    def __init__(self, subject: Subject) -> None:
        self._model = model = innermost(subject.model)
        self._inputs = inputs = Inputs(model, subject.batch)
        if inputs.ids is None or inputs.reads_labels or inputs.ids == "decoder_input_ids":
            raise Unavailable("the batch has no token ids whose positions could be followed")
        self._valid, self._ids = inputs.valid.cpu(), inputs[inputs.ids].cpu()
        if self._valid.shape != self._ids.shape:
            raise Unavailable("the padding mask is of another shape than the token ids")
        known = sorted(placeholders(model, subject.processor, subject.tokenizer))
        self._text = self._valid & ~torch.isin(self._ids, torch.tensor(known))

    def attach(self, listening: Listening) -> None:
        """Asks for what the text's tables are given."""
        self._seen: dict[str, torch.Tensor] = {}
        for raw_name, module in self._model.named_modules():
            name = canonical_name(f"{raw_name}.").rstrip(".")
            last = name.rpartition(".")[2]
            if role_of(name) != "vision" and (_TABLES.search(last) or _TABLES.search(type(module).__name__)):
                listening.before(module, functools.partial(self._catch, name))

    def _catch(self, name: str, module: nn.Module, given: tuple, keywords: dict[str, Any]) -> None:
        positions = _among(module, given, keywords, self._ids)
        if positions is not None:
            self._seen.setdefault(name, positions)

    def conclude(self, outcome: Outcome, forward: Forward) -> Positions:
        """The facts of the positions that were seen, and of those that the model would make."""
        fields, ids, seen = self._inputs.fields, self._ids, self._seen
        given = next((name for name in _GIVEN if _fitting(fields.get(name), ids) is not None), None)
        used = next((p for p in seen.values() if len(p) > 1), None)
        own, no_expected = None, None
        try:
            own = _own(self._model, self._inputs, used, self._valid)
        except Unavailable as reason:
            no_expected = str(reason)
        if given is not None and not seen and (fitting := _fitting(fields[given], ids)) is not None:
            # A table that is not a module, or a model that ignores them.
            seen = {given: fitting}
        return Positions(
            given=given,
            places=tuple(
                Place(module=name, axes=len(p), rows=tuple(_counted(p[0], self._text, self._valid)))
                for name, p in seen.items()
            ),
            limit=max_positions(text_config(getattr(self._model, "config", None))),
            expected=own,
            no_expected=no_expected,
        )


def _among(
    module: nn.Module, given: tuple, keywords: dict[str, Any], ids: torch.Tensor
) -> torch.Tensor | None:
    """The positions among a module's arguments: by the parameter's name, else the only whole numbers."""
    names = [name for name in inspect.signature(module.forward).parameters if name not in keywords]
    passed = {**dict(zip(names, given, strict=False)), **keywords}
    fitting = {name: p for name, value in passed.items() if (p := _fitting(value, ids)) is not None}
    named = [p for name, p in fitting.items() if "pos" in name]
    if named:
        return named[0]
    # Some models hand their padding mask over, and count by it; one that takes ids or labels is no table.
    whole = [v for v in passed.values() if isinstance(v, torch.Tensor) and not v.is_floating_point()]
    unnamed = [p for name, p in fitting.items() if "mask" not in name]
    return unnamed[0] if len(unnamed) == len(whole) == 1 else None


def _fitting(value: Any, ids: torch.Tensor) -> torch.Tensor | None:
    """[A, B, T]: whole numbers for each token, on the CPU; None where it is anything else."""
    if not isinstance(value, torch.Tensor) or value.dtype not in (torch.int64, torch.int32) or value.is_meta:
        return None
    value = value.detach().cpu()
    rows, length = ids.shape
    if value.ndim == 1 and len(value) == length:
        value = value[None]
    if value.ndim == 2 and value.shape[1] == length and value.shape[0] in (1, rows):
        return None if torch.equal(value, ids) else value.expand(rows, length)[None]
    if value.ndim == 3 and value.shape[2] == length and value.shape[1] in (1, rows) and len(value) < 8:
        return value.expand(len(value), rows, length)
    return None


def _counted(positions: torch.Tensor, text: torch.Tensor, valid: torch.Tensor) -> Iterator[Counted]:
    """How `positions` [B, T] go on in each row that has real tokens."""
    for number, (row, words, real) in enumerate(zip(positions, text, valid, strict=True)):
        if not bool(real.any()):
            continue
        both = words[1:] & words[:-1]
        before, after = row[:-1][both], row[1:][both]
        restart = (after <= 1) & (after < before)
        yield Counted(
            row=number,
            tokens=int(real.sum()),
            first=int(row[real][0]),
            lowest=int(row[real].min()),
            highest=int(row[real].max()),
            pairs=int(both.sum()),
            rising=int((after > before).sum()),
            falling=int(((after < before) & ~restart).sum()),
            restarts=int(restart.sum()),
        )


def _own(
    model: nn.Module, inputs: Inputs, used: torch.Tensor | None, valid: torch.Tensor
) -> ExpectedPositions:
    """Compares what the model makes of the batch with what reached its tables."""
    owner = next((module for module in model.modules() if callable(getattr(module, OWN, None))), None)
    if owner is None:
        raise Unavailable("the model has no positions of several axes")
    if used is None:
        raise Unavailable("the positions did not reach a rotary table as they are")
    function = getattr(owner, OWN)
    wanted = inspect.signature(function).parameters
    given = {name: copy_of(value) for name, value in inputs.fields.items() if name in wanted}
    if not any(name.endswith("grid_thw") and value is not None for name, value in given.items()):
        raise Unavailable("the batch has no images with a grid")
    try:
        made = function(**given)
    except Exception as error:
        raise Unavailable(f"{OWN} raises {raised(error, 120)}") from error
    own = made[0] if isinstance(made, tuple) else made
    own = own.detach().cpu() if isinstance(own, torch.Tensor) else own
    if len(used) == getattr(own, "ndim", 0) + 1 and own.ndim == 3:
        used = used[1:]  # the first axis counts the text alone
    if not isinstance(own, torch.Tensor) or own.shape != used.shape:
        raise Unavailable(f"{OWN} gives positions of another shape than the tables are given")
    return _compared(own, used, valid)


def _compared(own: torch.Tensor, used: torch.Tensor, valid: torch.Tensor) -> ExpectedPositions:
    """Row by row, whatever number both begin with: rotary positions are relative."""
    differing_rows = differing = tokens = rows = 0
    example = None
    flat, permuted = True, True
    for number, real in enumerate(valid):
        mine, theirs = own[:, number][:, real], used[:, number][:, real]
        if not mine.shape[1] or bool((theirs[0, 1:] < theirs[0, :-1]).any() and (theirs[0, 1:] == 0).any()):
            continue  # several samples in one row: the model's own would count through them
        rows += 1
        tokens += mine.shape[1]
        apart = _apart(mine, theirs)
        if not bool(apart.any()):
            continue
        differing_rows += 1
        differing += int(apart.sum())
        flat = flat and bool((theirs == theirs[:1]).all()) and not bool((mine == mine[:1]).all())
        orders = itertools.permutations(range(len(mine)))
        permuted = permuted and any(not bool(_apart(mine[list(order)], theirs).any()) for order in orders)
        if example is None:
            at = int(apart.nonzero()[0])
            token = int(real.nonzero()[at])
            example = (number, token, tuple(mine[:, at].tolist()), tuple(theirs[:, at].tolist()))
    if not rows:
        raise Unavailable("several samples share each row")
    found = differing_rows > 0
    return ExpectedPositions(
        function=OWN,
        axes=len(own),
        rows=rows,
        differing_rows=differing_rows,
        differing=differing,
        tokens=tokens,
        flat=found and flat,
        permuted=found and permuted,
        example=example,
    )


def _apart(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """[T]: whether a token's positions differ, once both begin with the same number."""
    return ((mine - mine[0, 0]) != (theirs - theirs[0, 0])).any(dim=0)
