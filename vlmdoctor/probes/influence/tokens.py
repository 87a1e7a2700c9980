"""Changes to the text of a batch: a token, the padding; and which logits they may move."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.influence import Change
from vlmdoctor.probes.influence.baseline import Baseline, change
from vlmdoctor.probes.influence.leak_site import classes_of, leaking_place, moved_with_causal_mask
from vlmdoctor.probes.influence.passes import distances
from vlmdoctor.subject import vocab_size

Results = Iterator[tuple[str, Change | str]]

PADDING = 3
_RECURRENT = ("mamba", "rwkv", "lstm", "recurrent", "ssm", "deltanet", "hyena")
_LENGTH_DEPENDENT = ("dynamic", "longrope")
CAPACITY = "experts of limited capacity make samples depend on each other by design"


def edit_a_token(reference: Baseline) -> Results:
    """A late token of one row: nothing before it may move, and nothing in another row."""
    reference.need_logits()
    inputs, refused = reference.inputs, None
    try:
        where = reference.predicting()
    except Unavailable as reason:
        where, refused = reference.valid, str(reason)
    row, place = _late_token(reference, where)
    ids = inputs[inputs.ids].clone()
    ids[row, place] = _another(reference, row, place)
    changed = reference.with_ids(ids)
    apart = reference.moved(reference.trials.run(changed))
    columns = torch.arange(ids.shape[1])
    # A decoder that reads the labels sees this one a position later.
    sees = columns > place if inputs.reads_labels else columns >= place
    effect = float(apart[row][sees & reference.valid[row]].max())
    if effect <= 10 * reference.noise:
        raise Unavailable("the changed token moves no logit at all, not even its own")
    allowed = reference.exact(effect)
    what = f"token {place} of row {row}"
    if refused is None:
        before = where & ~sees
        before[torch.arange(len(ids)) != row] = False
        kind = getattr(reference.config, "is_decoder", None)
        found = change(what, apart, before, allowed, effect, token=place, is_decoder=kind)
        found = _located(reference, found, changed, before, repair=True)
        if found.moves:
            found = dataclasses.replace(
                found, detail={**found.detail, "looks_back": _looks_back(reference, where)}
            )
        yield "later-token", found
    else:
        yield "later-token", refused
    others = reference.valid.clone()
    others[row] = False
    if len(ids) < 2:
        yield "another-sample", "the batch holds one sample only"
    elif reference.setting("expert_capacity") is not None:
        yield "another-sample", CAPACITY
    else:
        found = change(what, apart, others, allowed, effect, changed_row=row)
        yield "another-sample", _located(reference, found, changed, others)


def edit_a_packed_sample(reference: Baseline) -> Results:
    """A token of the first of several samples in one row: the others in it may not move."""
    reference.need_logits()
    numbers = reference.inputs.packed()
    if numbers is None:
        raise Unavailable("no row of the batch is packed with several samples")
    numbers = numbers.cpu()
    row = next(r for r in range(len(numbers)) if len(numbers[r][reference.valid[r]].unique()) > 1)
    first = (numbers[row] == numbers[row][reference.valid[row]][0]) & reference.valid[row]
    places = [int(p) for p in first.nonzero() if not _stands_for_more(reference, row, int(p))]
    if not places:
        raise Unavailable("the first packed sample has no text")
    ids = reference.inputs[reference.inputs.ids].clone()
    ids[row, places[-1]] = _another(reference, row, places[-1])
    changed = reference.with_ids(ids)
    others = torch.zeros_like(reference.valid)
    others[row] = reference.valid[row] & ~first
    what = f"token {places[-1]} of row {row}"
    by = "segment_ids" if "position_ids" not in reference.inputs.fields else "position_ids"
    masked = reference.inputs.mask is not None

    def seen(**told: Any) -> Change:
        before, after = (reference.trials.run(batch) for batch in (None, changed))
        apart = reference.moved(after, before)
        effect = float(apart[row][first].max())
        return change(
            what, apart, others, reference.exact(effect), effect, told_by=by, attention_mask=masked, **told
        )

    with _without_cache(reference.trials.model):
        found = seen()
    if not found.moves and _may_cache(reference):
        found = seen(cache=True)
    yield "packed-neighbour", found


def _may_cache(reference: Baseline) -> bool:
    """Whether a training step makes a cache: one that is left to itself does, a Trainer turns it off."""
    checkpoints = getattr(reference.trials.model, "is_gradient_checkpointing", False)
    return reference.subject.training_args is None and not checkpoints


@contextlib.contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """A cache, which no training needs, keeps transformers from looking for packed samples."""
    found: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    configs = {id(config): config for config in found if getattr(config, "use_cache", False)}
    for config in configs.values():
        config.use_cache = False
    try:
        yield
    finally:
        for config in configs.values():
            config.use_cache = True


def pad_more(reference: Baseline) -> Results:
    """More padding, on the side where the batch has it: no logit of a real token may move."""
    reference.need_logits()
    inputs, length = reference.inputs, reference.valid.shape[1]
    if inputs.mask is None or inputs.reads_labels or inputs.ids == "decoder_input_ids":
        raise Unavailable("the batch has no padding mask over its token ids")
    reference.predicting()
    longest = reference.setting("max_position_embeddings") or reference.setting("n_positions")
    rope = reference.setting("rope_parameters") or {}
    if isinstance(longest, int) and length + PADDING > longest:
        raise Unavailable(f"the sequence has no room for padding: {length} of {longest} positions are used")
    if isinstance(rope, dict) and rope.get("rope_type") in _LENGTH_DEPENDENT:
        raise Unavailable("the rotary frequencies depend on the length by design")
    if any(
        getattr(v, "ndim", 0) >= 4 and v.shape[-1] == length and "mask" in n for n, v in inputs.fields.items()
    ):
        raise Unavailable("the batch brings a finished attention mask")
    left = bool((~reference.valid[:, 0]).any())
    names = " ".join({type(module).__name__.lower() for module in reference.trials.model.modules()})
    if left and any(part in names for part in _RECURRENT):
        raise Unavailable("recurrent layers read padding on the left by design")
    reference.need_no_draws()
    seen = reference.trials.run(inputs.with_(**_padded(reference, left)))
    if seen.logits is None or seen.logits.shape[1] != reference.logits.shape[1] + PADDING:
        raise Unavailable("the padded batch gives logits of another shape")
    logits = reference.text(seen.logits)
    kept = logits[:, PADDING:] if left else logits[:, :length]
    apart = distances(kept, reference.text(reference.logits)).cpu()
    side = "left" if left else "right"
    given = "position_ids" in inputs.fields
    yield (
        "padding",
        change(
            f"{PADDING} more padding tokens on the {side}",
            apart,
            reference.valid,
            reference.rounded,
            None,
            side=side,
            position_ids=given,
        ),
    )


def _located(
    reference: Baseline, found: Change, changed: Any, where: torch.Tensor, *, repair: bool = False
) -> Change:
    """`found`, if it moves, with the place where it gets through and what a causal mask would do."""
    if not found.moves:
        return found
    place = leaking_place(reference, changed, where)
    detail = {**found.detail, "place": place, "classes": classes_of(reference.trials.model, place)}
    if repair:
        detail["moved_with_causal_mask"] = moved_with_causal_mask(reference, changed, where)
    return dataclasses.replace(found, detail=detail)


def _looks_back(reference: Baseline, where: torch.Tensor) -> bool | None:
    """Whether an earlier token moves any logit behind it; None where there is none to change."""
    for row in range(len(where)):
        last = int(where[row].nonzero()[-1]) if where[row].any() else 0
        texts = (int(place) for place in reference.valid[row].nonzero())
        place = next((place for place in texts if not _stands_for_more(reference, row, place)), last)
        if place >= last:
            continue
        ids = reference.inputs[reference.inputs.ids].clone()
        ids[row, place] = _another(reference, row, place)
        apart = reference.moved(reference.trials.run(reference.with_ids(ids)))[row]
        if float(apart[place]) <= reference.noise:
            return None  # not even its own: it may be hidden
        behind = where[row] & (torch.arange(len(apart)) > place)
        return float(apart[behind].max()) > reference.exact(float(apart[place]))
    return None


def _padded(reference: Baseline, left: bool) -> dict[str, torch.Tensor]:
    inputs = reference.inputs
    shape = inputs[inputs.ids].shape
    fill = {inputs.ids: _pad_id(reference), inputs.mask: int(inputs.hides), inputs.labels: inputs.ignored}
    padded = {}
    for name, value in inputs.fields.items():
        if not isinstance(value, torch.Tensor) or name in inputs.images:
            continue
        axis = 1 if value.shape[:2] == shape else 2 if value.shape[1:] == shape else None
        if axis is None:
            continue
        edge = value.narrow(axis, 0 if left else shape[1] - 1, 1)
        more = torch.full_like(edge, fill.get(name, 0)).repeat_interleave(PADDING, dim=axis)
        if "position_ids" in name:
            more = edge.repeat_interleave(PADDING, dim=axis)
        padded[name] = torch.cat([more, value] if left else [value, more], dim=axis)
    return padded


def _pad_id(reference: Baseline) -> int:
    places = (reference.subject.tokenizer, reference.config, getattr(reference.config, "text_config", None))
    known = [getattr(place, "pad_token_id", None) for place in places]
    rows = vocab_size(reference.trials.model) or math.inf
    pad = next((k for k in known if isinstance(k, int) and 0 <= k < rows), None)
    padding = reference.inputs[reference.inputs.ids][
        ~reference.valid.to(reference.inputs[reference.inputs.ids].device)
    ]
    if padding.numel():
        pad = int(padding[0])
    if pad is None:
        pad = _another(reference, 0, int(reference.valid[0].nonzero()[0]))
    return pad


def _late_token(reference: Baseline, where: torch.Tensor) -> tuple[int, int]:
    """(row, position) of the latest text token that has a position in `where` before it."""
    inputs = reference.inputs
    for row in range(len(where)):
        valid = reference.valid[row].nonzero().flatten().tolist()
        before = where[row].nonzero().flatten().tolist()
        # The last label may be moved to the front of what the decoder reads (mBART).
        places = valid[:-1] if inputs.reads_labels else valid
        if before and not inputs.reads_labels and inputs.labels is not None:
            # No later than what the last supervised logit foretells: the prompt may look ahead.
            places = [place for place in places if place <= before[-1] + 1]
        for place in reversed(places):
            if not _stands_for_more(reference, row, place) and before and before[0] < place:
                return row, place
    raise Unavailable("no row has a text token with a supervised one before it")


def _stands_for_more(reference: Baseline, row: int, place: int) -> bool:
    return int(reference.inputs[reference.inputs.ids][row, place]) in reference.placeholders


def _another(reference: Baseline, row: int, place: int) -> int:
    """Another token of the batch's text, to stand at this place."""
    ids = reference.inputs[reference.inputs.ids]
    special = set(getattr(reference.subject.tokenizer, "all_special_ids", None) or ())
    for owner in (reference.config, getattr(reference.config, "text_config", None)):
        values = (getattr(owner, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos"))
        special.update(v for v in values if isinstance(v, int))
    current = int(ids[row, place])
    likely = reference.valid
    with contextlib.suppress(Unavailable):
        following = reference.predicting()
        likely = torch.zeros_like(following)
        likely[:, 1:] = following[:, :-1]
    for here in (likely, reference.valid):
        pool = [int(i) for i in ids[here.to(ids.device)].flip(0).tolist()]
        for candidate in pool:
            if candidate not in {current, *special, *reference.placeholders} and candidate >= 0:
                return candidate
    raise Unavailable("the batch's text is one token only, so that there is none to put in its place")
