"""How large image features are beside the text's embeddings, where the two come together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmdoctor.evidence.forward import passed

if TYPE_CHECKING:
    from vlmdoctor.engine import Gatherer
    from vlmdoctor.subject import Subject

DEPTH = "forward"


@dataclass(frozen=True)
class Join:
    """What goes into the first decoder layer.

    Attributes:
        module: That layer, by its canonical name.
        image_places: How many places change when the images do.
        text_places: How many don't, padding left out.
        image_size: The root of the mean square of a place's values, in the middle of all image places.
        text_size: The same of the text.
    """

    module: str
    image_places: int
    text_places: int
    image_size: float
    text_size: float


def probe(subject: Subject, gather: Gatherer) -> Join:
    """Catches what the first decoder layer is given in the one pass, and once more with other images."""
    from vlmdoctor.evidence.one_pass import observed

    passed(gather, finite=True)
    return observed(gather, "vlmdoctor.evidence.join_seen")
