"""new-rows-frozen: rows for new tokens that start at random and never learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmdoctor.evidence.adapters import Adapters
from vlmdoctor.evidence.checkpoint import Checkpoint, is_resized
from vlmdoctor.evidence.config import Configuration
from vlmdoctor.evidence.data import Data
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters
from vlmdoctor.rules.ckpt._healthy import sample_checkpoint
from vlmdoctor.rules.places import counted, listed


@rule("new-rows-frozen", "PARAM303")
def new_rows_frozen(
    checkpoint: Checkpoint,
    parameters: Parameters,
    configuration: Configuration,
    adapters: Adapters | None,
    data: Data | None,
) -> Iterator[Finding]:
    """Embedding rows of new tokens are frozen.

    ## Why it matters
    The new rows hold random or average values. With adapters on the attention alone, or a frozen language
    model, the new rows keep these values: the new tokens mean nothing, and the loss falls without them
    ([unsloth 9331](https://github.com/unslothai/unsloth/issues/9331)).

    ## Confidence and false positives
    The checkpoint has fewer rows than the model, the tokenizer (or, without one, the batch) has tokens in the
    new ones, and nothing in those tables is trainable. It is a warning, since the rows may have been trained
    before, or never be used.

    ## What to do
    Train the new rows (`trainable_token_indices` of PEFT, `modules_to_save`), or the whole table.
    """
    used = max((token + 1 for row in data.rows for token in row.ids), default=0) if data else 0
    tokens = configuration.tokens or used
    if not tokens or (adapters is not None and adapters.new_rows_trained):
        return
    frozen = {p.name for p in parameters.parameters if not p.requires_grad}
    grown = [
        (w, w.key_shape[0])
        for w in checkpoint.weights
        if w.key_shape
        and w.shape
        and is_resized(w.name, w.shape, w.key_shape)
        and w.key_shape[0] < w.shape[0]
    ]
    grown = [(w, rows) for w, rows in grown if w.loaded and w.name in frozen and rows < tokens]
    if not grown or not any(p.requires_grad for p in parameters.parameters):
        return
    rows = min(rows for _, rows in grown)
    new = min(tokens, grown[0][0].shape[0]) - rows
    yield Finding(
        f"rows of {counted(new, 'new token')} are frozen: they were added to "
        f"{listed(w.name for w, _ in grown)}",
        Severity.WARNING,
        at=tuple(w.name for w, _ in grown),
        measured={"rows": grown[0][0].shape[0], "rows_in_the_checkpoint": rows, "tokenizer_size": tokens},
        threshold={"frozen_new_rows": 0},
        cause="the table has more rows than the checkpoint's and requires no gradients; assumed, not known: "
        "that the new tokens were not trained before and occur in the data",
        fix=Fix(
            "train the new rows",
            (f"LoraConfig(..., trainable_token_indices=list(range({rows}, {min(tokens, rows + new)})))",),
        ),
    )


def _grown(trainable: bool) -> tuple[Checkpoint, Parameters, Configuration]:
    checkpoint = sample_checkpoint(lambda w: {"key_shape": (600, 320)} if "embed_tokens" in w.name else {})
    parameters = sample_parameters(
        lambda p: (
            {"requires_grad": trainable, "in_optimizer": int(trainable)} if "embed_tokens" in p.name else {}
        )
    )
    return checkpoint, parameters, Configuration(tokens=604)


@new_rows_frozen.bad
def table_frozen() -> tuple[Checkpoint, Parameters, Configuration]:
    return _grown(False)


@new_rows_frozen.good
def table_learns() -> tuple[Checkpoint, Parameters, Configuration]:
    return _grown(True)


@new_rows_frozen.good
def padding_rows() -> tuple[Checkpoint, Parameters, Configuration]:
    """Rows that only round the table's size up belong to no token."""
    checkpoint, parameters, configuration = _grown(False)
    return checkpoint, parameters, dataclasses.replace(configuration, tokens=600)
