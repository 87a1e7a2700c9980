"""The configuration compared with the model: tables, ties, special tokens, the processor's image sizes."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
PROBE = "vlmdoctor.probes.model.config"


@dataclass(frozen=True, kw_only=True)
class Tie:
    """Two parameters that the configuration ties.

    Attributes:
        target: The name that is filled from the other one on loading, such as `lm_head.weight`.
        source: The other name.
        tied: Whether they are one tensor.
        equal: Whether their values are equal; None where not compared.
        trainable: Whether either learns.
    """

    target: str
    source: str
    tied: bool
    equal: bool | None = None
    trainable: bool = False


@dataclass(frozen=True, kw_only=True)
class ImageSizes:
    """What the processor makes of an image, beside what the tower takes; None where unknown.

    Attributes:
        patch, tower_patch: Pixels of a patch's side.
        image, tower_image: Pixels of the image's side, where the tower takes one size only.
        extra_tokens, tower_extra_tokens: Tokens per image beside its patches (a class token, if it is kept).
    """

    patch: int | None = None
    tower_patch: int | None = None
    image: int | None = None
    tower_image: int | None = None
    extra_tokens: int | None = None
    tower_extra_tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What the configuration, the tables, the tokenizer and the processor say about each other.

    Attributes:
        embedding: Name of the table of tokens; None where unknown.
        embedding_rows: Its rows.
        head: Name of the output head's weight.
        head_rows: Its rows.
        vocab_size: The configuration's.
        ties: Parameters that are tied, or should be.
        dropped: Names that `save_pretrained` leaves out and `from_pretrained` would not fill.
        save_error: What `save_pretrained` would raise about shared memory.
        tokens: The tokenizer's size; None where there is no tokenizer.
        beyond_embedding: Token -> id of those without a row, but for image placeholders.
        beyond_head: Token -> id of those with a row in the table and none in the head, likewise.
        image_token_id: The configuration's placeholder.
        image_token: The tokenizer's text for it; None where it has none.
        placeholder_ids: Those that processor and tokenizer write; empty where unknown.
        sizes: The processor's image sizes beside the tower's.
    """

    embedding: str | None = None
    embedding_rows: int | None = None
    head: str | None = None
    head_rows: int | None = None
    vocab_size: int | None = None
    ties: tuple[Tie, ...] = ()
    dropped: tuple[str, ...] = ()
    save_error: str | None = None
    tokens: int | None = None
    beyond_embedding: tuple[tuple[str, int], ...] = ()
    beyond_head: tuple[tuple[str, int], ...] = ()
    image_token_id: int | None = None
    image_token: str | None = None
    placeholder_ids: tuple[int, ...] = ()
    sizes: ImageSizes = ImageSizes()
