"""Exchanging all words of a batch, or what stands in its padding: does the loss move?"""

from __future__ import annotations

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.attempts import Results
from vlmdoctor.evidence.influence import Change
from vlmdoctor.evidence.reference import Reference, change

FEWEST = 4  # different words
SMALL = 1e-5  # of the loss: what a mean over all tokens makes of some


def exchange_the_words(reference: Reference) -> Results:
    """Each word becomes the next one that the batch knows; how texts begin and end stays."""
    inputs, before = reference.inputs, reference.before
    if inputs.ids is None or before.logits is not None or before.loss is None or inputs.reads_labels:
        raise Unavailable("the batch holds no token ids, or each token's logits are known")
    if inputs.labels is not None:
        raise Unavailable("the texts are labels too")
    ids = inputs[inputs.ids]
    special = torch.zeros_like(ids, dtype=torch.bool)
    for mark in {
        *ids[:, 0].tolist(),
        *ids[:, -1].tolist(),
        *ids.amax(dim=1).tolist(),
        *reference.placeholders,
    }:
        special |= ids == mark
    words = ids[~special & inputs.valid].unique()
    if len(words) < FEWEST:
        raise Unavailable("the texts hold too few different words")
    index = torch.searchsorted(words, ids.clamp(words[0], words[-1]))
    changed = torch.where(special | ~inputs.valid, ids, words[(index + 1) % len(words)])
    other = reference.trials.run(inputs.with_(**{inputs.ids: changed})).loss
    if other is None:
        raise Unavailable("with other words there is no loss")
    moved = abs(other - before.loss)
    yield "text", Change("all words", moved, reference.noise, moved, positions=int((changed != ids).sum()))


def exchange_the_padding(reference: Reference) -> Results:
    """Other tokens in the places that the mask hides: no logit of a real token, and no loss, may move."""
    inputs, before = reference.inputs, reference.before
    if inputs.ids is None or inputs.mask is None or inputs.reads_labels or inputs.ids == "decoder_input_ids":
        raise Unavailable("the batch has no padding mask over its token ids")
    ids, hidden = inputs[inputs.ids], ~inputs.valid
    if not bool(hidden.any()):
        raise Unavailable("no row of the batch is padded")
    words = ids[
        inputs.valid & ~torch.isin(ids, torch.tensor(sorted(reference.placeholders)).to(ids))
    ].unique()
    if not len(words):
        raise Unavailable("the texts hold no word")
    changed = torch.where(hidden, words[len(words) // 2], ids)
    seen = reference.trials.run(inputs.with_(**{inputs.ids: changed}))
    what = f"the {int(hidden.sum())} tokens that the mask hides"
    if before.logits is not None:
        apart = reference.moved(seen)
        yield "hidden-tokens", change(what, apart, reference.valid, reference.rounded, None)
    elif before.loss is not None and seen.loss is not None:
        moved, allowed = abs(seen.loss - before.loss), max(reference.noise, SMALL * abs(before.loss))
        yield "hidden-tokens", Change(what, moved, allowed, positions=int(hidden.sum()))
    else:
        raise Unavailable("the model gives neither a loss nor logits")
