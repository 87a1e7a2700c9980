"""How a hand-written model is put together: its parts by what moves through them, and where images land."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "forward"
PROBE = "vlmdoctor.probes.model.wiring"


@dataclass(frozen=True, kw_only=True)
class FirstLook:
    """What the first module with weights on the path of the images is given.

    Attributes:
        module: Its canonical name.
        kind: Its class.
        low, high: The least and the largest value of its input.
        size: The root mean square of its input.
    """

    module: str
    kind: str
    low: float
    high: float
    size: float


@dataclass(frozen=True, kw_only=True)
class Wiring:
    """What a few forward passes of a model without a configuration show.

    Attributes:
        roles: (module, role) of the modules whose names don't say it.
        image_token_id: The id at all positions where image features land, and nowhere else; or None.
        images_of_rows: How many images each row has, from where they land; empty where that is not known.
        embedding: The module that is given the token ids; None where none is.
        embedding_rows: Its rows.
        head_rows: How many logits a position has.
        padding_id: The id at the places that the mask hides, or at the ends of rows of several lengths.
        ignored: The label that the loss leaves out; None where no loss was seen.
        left_out: Tokens among the labels whose own loss does not count.
        first_look: What the first layer that sees the images is given; None where that is not known, or
            where a norm comes next.
    """

    roles: tuple[tuple[str, str], ...] = ()
    image_token_id: int | None = None
    images_of_rows: tuple[int, ...] = ()
    embedding: str | None = None
    embedding_rows: int | None = None
    head_rows: int | None = None
    padding_id: int | None = None
    ignored: int | None = None
    left_out: frozenset[int] = frozenset()
    first_look: FirstLook | None = None
