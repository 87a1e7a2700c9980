"""Which token each prediction is compared with, read off the call of `cross_entropy` itself."""

from __future__ import annotations

import torch
from torch.nn import functional

from vlmdoctor.evidence.alignment import NEARLY_ALL, Alignment
from vlmdoctor.evidence.batch_roles import IGNORED, shares_of_shifts
from vlmdoctor.evidence.inputs import Inputs
from vlmdoctor.evidence.loss_calls import LossCall, token_losses, watched_losses
from vlmdoctor.evidence.trials import innermost
from vlmdoctor.invoke import run
from vlmdoctor.subject import Subject
from vlmdoctor.unchanged import copy_of

FURTHEST = 3  # places ahead


def seen_alignment(subject: Subject) -> Alignment | None:
    """The alignment of the first token loss; None where it can't be told. Use inside `unchanged`."""
    inputs = Inputs(innermost(subject.model), subject.batch, apart=subject.loss_fn is not None)
    if inputs.ids is None or inputs.reads_labels or inputs.ids == "decoder_input_ids":
        return None
    ids = inputs[inputs.ids]
    with torch.no_grad(), watched_losses() as calls:
        loss, logits = run(subject.model, copy_of(subject.batch), subject.loss_fn)
    seen = token_losses(calls, ids)
    if not seen or loss is None or logits is None or logits.ndim != 3 or len(logits) != len(ids):
        return None
    targets = _placed(seen[0], logits)
    if targets is None:
        return None
    found = places_ahead(ids, targets)
    if found is None:
        return None
    ahead, matched = found
    label_shift = 0
    if inputs.labels is not None and inputs[inputs.labels].shape == ids.shape:
        shares = shares_of_shifts(ids, inputs[inputs.labels], inputs.ignored)
        label_shift = max(shares, key=lambda shift: shares[shift], default=0)
    front = max(0, logits.shape[1] - ids.shape[1])
    return Alignment(float(loss), ahead - label_shift, label_shift, (), matched, front)


def _placed(call: LossCall, logits: torch.Tensor) -> torch.Tensor | None:
    """[B, L]: the target of each prediction, `IGNORED` where there is none; L as long as the logits."""
    rows, length, _ = logits.shape
    each, rest = divmod(len(call.targets), rows)
    if rest or not 0 < each <= length or call.rows not in (None, rows):
        return None
    scores = call.scores.unflatten(0, (rows, each))
    starts = [
        start
        for start in range(min(length - each, FURTHEST) + 1)
        if torch.equal(scores.float(), logits[:, start : start + each].float())
    ]
    if len(starts) != 1:
        return None
    targets = call.targets.masked_fill(call.targets == call.ignored, IGNORED).unflatten(0, (rows, each))
    placed = targets.new_full((rows, length), IGNORED)
    placed[:, starts[0] : starts[0] + each] = targets
    return placed


def places_ahead(ids: torch.Tensor, targets: torch.Tensor) -> tuple[int, float] | None:
    """(how many places ahead of their prediction the targets are, share of them that this explains)."""
    more = targets.shape[1] - ids.shape[1]
    if more == -1:  # the last token foretells nothing, and was not given to the model
        targets, more = functional.pad(targets, (0, 1), value=IGNORED), 0
    if more < 0:
        return None
    # Features stand in front of the text, or have taken the place of one token in it: behind them the ids
    # are those at the end. No id is what stands for the features themselves.
    filler = ids.new_full((len(ids), more), int(ids.min()) - 1)
    own = torch.cat([filler, ids], dim=1).to(targets.device)
    shares = {}
    for shift in range(-1, max(FURTHEST, more + 1) + 1):
        compared = own.roll(-shift, dims=1)
        known = targets != IGNORED
        if shift > 0:
            known[:, -shift:] = False
        if int(known.sum()) >= 4:
            shares[shift] = float((targets == compared)[known].float().mean())
    best = max(shares, key=lambda shift: shares[shift], default=None)
    if best is None or shares[best] < NEARLY_ALL:
        return None
    if sum(share > shares[best] - 0.2 for share in shares.values()) > 1:
        return None
    return best, shares[best]
