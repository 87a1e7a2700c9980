"""Where low-rank adapters are, and where they were asked for."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
PROBE = "vlmdoctor.probes.model.adapters"


@dataclass(frozen=True, kw_only=True)
class AdaptedModule:
    """One module with an adapter.

    Attributes:
        name: Canonical name.
        role: `vision`, `projector`, `language`, `head` or `other`.
        asked_as: The entry of `target_modules` that it ends with; "" where it was asked for otherwise.
    """

    name: str
    role: str
    asked_as: str = ""


@dataclass(frozen=True, kw_only=True)
class Adapters:
    """The adapters of one PEFT model.

    Attributes:
        modules: Those with an adapter.
        target_modules: The names asked for; empty where a pattern or nothing was given.
        all_linear: Whether no linear layer but the head was left out, as with `all-linear`.
        excludes: Whether `exclude_modules` was given.
        layers_to_transform: The numbers of layers asked for; empty for all.
        layers_pattern: The name of the stack that they are numbered in; "" where none was given.
        new_rows_trained: Whether rows of the embedding learn: through adapters, `trainable_token_indices`
            or `modules_to_save`.
        merged: How many of the modules run with their adapter added into the base weight.
        scaling: The largest factor by which a module's adapter is multiplied; None where unknown.
        dropout: The share of an adapter's inputs that is dropped, by its configuration.
    """

    modules: tuple[AdaptedModule, ...]
    target_modules: tuple[str, ...] = ()
    all_linear: bool = False
    excludes: bool = False
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: str = ""
    new_rows_trained: bool = False
    merged: int = 0
    scaling: float | None = None
    dropout: float = 0.0
