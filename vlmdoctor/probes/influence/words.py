"""Exchanging all words of a batch, or what stands in its padding: does the loss move?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.influence import Change
from vlmdoctor.probes.influence.baseline import Baseline, change
from vlmdoctor.probes.influence.tokens import Results

FEWEST = 4  # different words
SMALL = 1e-5  # of the loss: what a mean over all tokens makes of some


def exchange_the_words(reference: Baseline) -> Results:
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
    yield (
        "text",
        Change(
            what="all words",
            moved=moved,
            allowed=reference.noise,
            effect=moved,
            positions=int((changed != ids).sum()),
        ),
    )


def exchange_the_padding(reference: Baseline) -> Results:
    """Other embeddings in the places that the mask hides: no logit of a real token, and no loss, may move.

    The ids stay, since some models tell by them where padding is.
    """
    inputs, before = reference.inputs, reference.before
    if inputs.ids is None or inputs.mask is None or inputs.reads_labels or inputs.ids == "decoder_input_ids":
        raise Unavailable("the batch has no padding mask over its token ids")
    hidden = ~inputs.valid
    if not bool(hidden.any()):
        raise Unavailable("no row of the batch is padded")
    with _other_embeddings(reference, hidden) as exchanged:
        seen = reference.trials.run()
    if not exchanged:
        raise Unavailable("no embedding is looked up with the token ids as they are")
    what = f"the {int(hidden.sum())} tokens that the mask hides"
    if before.logits is not None:
        apart = reference.moved(seen)
        yield "hidden-tokens", change(what, apart, reference.valid, reference.rounded, None)
    elif before.loss is not None and seen.loss is not None:
        moved, allowed = abs(seen.loss - before.loss), max(reference.noise, SMALL * abs(before.loss))
        yield "hidden-tokens", Change(what=what, moved=moved, allowed=allowed, positions=int(hidden.sum()))
    else:
        raise Unavailable("the model gives neither a loss nor logits")


@contextlib.contextmanager
def _other_embeddings(reference: Baseline, hidden: torch.Tensor) -> Iterator[list[str]]:
    """The model with noise on the embeddings at `hidden` [B, T]; what it holds is where that was done."""
    ids = reference.inputs[reference.inputs.ids]
    done: list[str] = []

    def hook(module: nn.Module, given: tuple, output: Any) -> Any:
        if not given or not isinstance(given[0], torch.Tensor) or not torch.equal(given[0], ids):
            return output
        done.append(type(module).__name__)
        drawn = torch.randn(output.shape, generator=torch.Generator().manual_seed(8)).to(output)
        return torch.where(hidden[..., None].to(output.device), output + drawn * output.std(), output)

    with contextlib.ExitStack() as hooks:
        for module in reference.trials.model.modules():
            if isinstance(module, nn.Embedding):
                hooks.callback(module.register_forward_hook(hook).remove)
        yield done
