"""Exchanging all words of a batch, for models that give no logits for each token: does the loss move?"""

from __future__ import annotations

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.attempts import Results
from vlmdoctor.evidence.influence import Change
from vlmdoctor.evidence.reference import Reference

FEWEST = 4  # different words


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
