"""vocab-size-disagrees: the output head has another number of rows than the configuration says."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.config import Configuration
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("vocab-size-disagrees", "CFG304", explains=("forward-raises",))
def vocab_size_disagrees(configuration: Configuration) -> Iterator[Finding]:
    """`vocab_size` differs from the number of rows of the output head.

    ## Why it matters
    The loss reshapes the logits by the configuration's `vocab_size`, and loading builds the tables from it:
    after a resize that did not reach the text model's configuration, the one raises or pairs logits with the
    wrong tokens, and the other fails ([transformers
    36590](https://github.com/huggingface/transformers/issues/36590)).

    ## Confidence and false positives
    Both numbers are read. It is a warning, since a custom model may not use the configuration's; more rows in
    the embedding than in the head are a design (Mllama) and not judged.

    ## What to do
    Resize through the outermost model (`model.resize_token_embeddings`), which updates the configurations.
    """
    rows, size = configuration.head_rows, configuration.vocab_size
    if rows is None or size is None or rows == size:
        return
    yield Finding(
        f"the output head has {rows:,} rows, and the configuration's vocab_size is {size:,}",
        Severity.WARNING,
        at=(configuration.head or "output head",),
        measured={"head_rows": rows, "embedding_rows": configuration.embedding_rows},
        threshold={"vocab_size": size},
        cause="the tables were replaced or resized without the configuration; code that reshapes logits or "
        "loads weights by vocab_size will not match them",
        fix=Fix(
            "resize through the outermost model, or correct the configuration",
            (f"model.config.get_text_config().vocab_size = {rows}",),
        ),
    )


@vocab_size_disagrees.bad
def text_config_forgotten() -> Configuration:
    return Configuration(embedding_rows=128260, head_rows=128260, vocab_size=128256)


@vocab_size_disagrees.good
def mllama() -> Configuration:
    """Eight rows more in the embedding than in the head, for the image token."""
    return Configuration(embedding_rows=128264, head_rows=128256, vocab_size=128256)
