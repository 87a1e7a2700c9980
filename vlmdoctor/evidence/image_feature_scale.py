"""How large image features are, compared with the text's embeddings, where the two are joined."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "forward"
PROBE = "vlmdoctor.probes.images.features"


@dataclass(frozen=True, kw_only=True)
class ImageFeatureScale:
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
