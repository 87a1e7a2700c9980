"""At which positions of the text the images land, which token stands there, and which one is padding."""

from __future__ import annotations

import math
from typing import Any

import torch

from vlmdoctor.probes.influence.passes import PassRunner

FEWEST = 2  # places at the end of a row that are padding by themselves


def landing(trials: PassRunner, place: int, other: Any) -> tuple[int | None, tuple[int, ...]]:
    """(the id at all places that move with the images and nowhere else, images of each row).

    `place` is the number of the first call, in the order of their ends, that is given text and images.
    """
    inputs = trials.inputs
    ids = inputs[inputs.ids]
    own, changed = _given(trials, place, ids, None), _given(trials, place, ids, other)
    if own is None or changed is None or own.shape != changed.shape:
        return None, ()
    moved = (own != changed).any(dim=-1)
    if bool(moved.all()) or not bool(moved.any()):
        return None, ()
    shares = _shares(moved.sum(dim=1).tolist(), [inputs[name] for name in inputs.images])
    if own.shape[1] != ids.shape[1]:
        return None, shares  # the features have places of their own beside the text's
    standing = ids[moved.to(ids.device)].unique()
    if len(standing) != 1:
        return None, shares
    token = int(standing[0])
    # Where the token is at other places too, such as padding, it does not tell an image.
    alone = bool(((ids == token) == moved.to(ids.device)).all())
    return (token if alone else None), shares


def _given(trials: PassRunner, place: int, ids: torch.Tensor, batch: Any) -> torch.Tensor | None:
    """What the call number `place` is given."""
    count = [0]
    caught: list[torch.Tensor] = []
    rows, length = ids.shape

    def heard(module: Any, given: tuple, keywords: dict[str, Any], output: Any) -> None:
        if count[0] == place:
            values = (*given, *keywords.values())
            caught.extend(
                v.detach().clone()
                for v in values
                if isinstance(v, torch.Tensor)
                and v.is_floating_point()
                and v.ndim == 3
                and v.shape[0] == rows
                and v.shape[1] >= length
            )
        count[0] += 1

    handles = [
        module.register_forward_hook(heard, with_kwargs=True)
        for name, module in trials.model.named_modules()
        if name
    ]
    try:
        trials.run(batch)
    finally:
        for handle in handles:
            handle.remove()
    return caught[0] if caught else None


def _shares(places: list[int], images: list[torch.Tensor]) -> tuple[int, ...]:
    """How many images each row has, where all are of one size; else empty."""
    if len(images) != 1 or images[0].ndim < 4:
        return ()
    count, total = math.prod(images[0].shape[:-3]), sum(places)
    each, rest = divmod(total, count)
    if rest or not each or any(many % each for many in places):
        return ()
    return tuple(many // each for many in places)


def padding_of(ids: torch.Tensor, valid: torch.Tensor | None) -> int | None:
    """The id at the places that the mask hides; without one, the id that only the ends of rows hold."""
    if valid is not None and not bool(valid.all()):
        hidden = ids[~valid.to(ids.device)].unique()
        return int(hidden[0]) if len(hidden) == 1 and int(hidden[0]) >= 0 else None
    last = ids[:, -1]
    for token in last.unique().tolist():
        stands = ids == token
        tails = stands.flip(1).long().cumprod(dim=1).sum(dim=1)
        # The token that ends a text stands there once, and a row may be as long as the batch.
        several = len(tails.unique()) > 1 and int((tails >= FEWEST).sum()) > 0
        if (
            token >= 0
            and several
            and bool((stands.sum(dim=1) == tails).all())
            and bool((tails < ids.shape[1]).all())
        ):
            return int(token)
    return None
