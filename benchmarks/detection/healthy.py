"""The corpus of the healthy: nothing may be found on any of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.detection.case import Case, Made
from benchmarks.detection.models import DECODERS, HANDWRITTEN, VLMS, make
from benchmarks.detection.variants import VARIANTS

PRESETS = ("tiny", "tiny8", "colab")


def cases() -> list[Case]:
    """All healthy cases."""
    plain = [Case(f"vlm/{family}", family, _maker(family)) for family in VLMS]
    plain += [Case(f"decoder/{family}", family, _maker(family)) for family in DECODERS]
    plain += [Case(f"handwritten/{family}", family, _maker(family)) for family in HANDWRITTEN]
    plain += [Case(f"minivlm/{preset}", "minivlm", _maker(f"minivlm:{preset}")) for preset in PRESETS]
    return plain + [
        Case(f"variant/{name}/{family}", family, _maker(family, change, changes))
        for name, change, families, changes in VARIANTS
        for family in families
    ]


def _maker(
    family: str, change: Callable[[Made], None] | None = None, changes: dict[str, Any] | None = None
) -> Callable[[], Any]:
    def build() -> Any:
        made = make(family, **(changes or {}))
        if change is not None:
            change(made)
        return made.subject()

    return build
