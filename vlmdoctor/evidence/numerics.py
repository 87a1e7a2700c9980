"""How large the activations of one forward pass are, and which module makes the first NaN or infinity."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "forward"
PROBE = "vlmdoctor.probes.numerics.activations"


@dataclass(frozen=True, kw_only=True)
class Culprit:
    """The first module that made NaN or infinity out of finite inputs.

    Attributes:
        name: Canonical name.
        module_class: Its class.
        dtype: Of its output.
        largest_input: The largest number in its inputs.
        weights_finite: Whether its own weights are finite.
        only_loss: Whether single numbers alone are not finite, as a loss is.
    """

    name: str
    module_class: str
    dtype: str
    largest_input: float | None
    weights_finite: bool
    only_loss: bool = False


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """What the activations looked like.

    Attributes:
        output_finite: Whether the loss and the logits are finite; None where there are neither.
        supervised_tokens: How many labels the loss sees; None where that is not known.
        nonfinite_inputs: The batch's parts that hold NaN or infinity.
        nonfinite_weights: Parameters that do.
        culprit: The first module that made some; None where none did.
        largest: The largest finite activation.
        largest_at: The module that made it, canonical name.
        half: Whether the run is in float16: by the weights or by the training arguments.
    """

    output_finite: bool | None = None
    supervised_tokens: int | None = None
    nonfinite_inputs: tuple[str, ...] = ()
    nonfinite_weights: tuple[str, ...] = ()
    culprit: Culprit | None = None
    largest: float = 0.0
    largest_at: str | None = None
    half: bool = False
