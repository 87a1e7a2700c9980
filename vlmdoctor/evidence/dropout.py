"""Which share of the values each dropout of the model throws away."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
PROBE = "vlmdoctor.probes.model.dropout"


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """The dropouts of a model.

    Attributes:
        modules: (canonical name, share of the values that it drops) of each dropout module, and of each
            number of a module that is named as such a share, as attention layers have it.
    """

    modules: tuple[tuple[str, float], ...] = ()
