"""What the loss makes of the logits, by its gradient: which tokens count, and how much each."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "backward"
PROBE = "vlmdoctor.probes.loss.form"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of the tokens in a loss that is a weighted sum of cross-entropies.

    The gradient of a cross-entropy is the probabilities, less one at the token that was right, times the
    token's weight: whoever sees the gradient knows the weight, whatever code made the loss.

    Attributes:
        loss: The loss.
        tokens: How many positions the loss depends on.
        rows: Those of each row.
        total: The sum of the weights: 1 for a mean, `tokens` for a sum; negative where the sign is turned.
        lightest: The smallest weight, as an absolute value.
        heaviest: The largest.
        residual: How far the gradient is from that of a cross-entropy, relative to its largest entry.
    """

    loss: float
    tokens: int
    rows: tuple[int, ...]
    total: float = 0.0
    lightest: float = 0.0
    heaviest: float = 0.0
    residual: float = 0.0

    @property
    def even(self) -> bool:
        """Whether all tokens count alike."""
        return self.heaviest <= 1.02 * self.lightest


@dataclass(frozen=True, kw_only=True)
class LossForm:
    """How the loss of the user's batch comes from the logits.

    Attributes:
        weights: Of the batch as it is.
        coarse: How large a `residual` rounding explains: more in half precision.
        positions: Rows times columns of the logits.
        labels: Labels of each row that a shifted loss would see; empty where they don't lie beside the ids.
        sure_of: Rows of which some prediction is so sure that its gradient may vanish.
        vocabulary: How many logits a position has.
        probabilities: Whether the logits are probabilities: none negative, and each position's sum is 1.
        weighted: Names of further numbers in the batch that may weigh rows or tokens.
        scaled: The gradient of half the loss over that of the loss: 0.5, or what the code made of it.
        masked_row: The row whose labels were masked for `without`; None where that was not tried.
        without: The weights with that row's labels masked; its `loss` may be NaN.
    """

    weights: Weights
    coarse: float = 1e-2
    positions: int = 0
    labels: tuple[int, ...] = ()
    sure_of: tuple[int, ...] = ()
    vocabulary: int = 0
    probabilities: bool = False
    weighted: tuple[str, ...] = ()
    scaled: float | None = None
    masked_row: int | None = None
    without: Weights | None = None

    @property
    def cross_entropy(self) -> bool:
        """Whether the gradient is that of a weighted cross-entropy over the logits."""
        return self.weights.tokens > 0 and self.weights.residual <= self.coarse
