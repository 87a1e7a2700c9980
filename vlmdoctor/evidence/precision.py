"""In which float types a model's layers compute, and in which their weights are."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "forward"
PROBE = "vlmdoctor.probes.numerics.precision"


@dataclass(frozen=True, kw_only=True)
class LayerPrecision:
    """One layer of a stack of layers, in one forward pass.

    Attributes:
        name: Canonical name.
        stack: That of the stack.
        role: `vision`, `projector`, `language`, `head` or `other`.
        weights: The float type that most of its weights are in, such as `bfloat16`.
        given: That of the activations that come in.
        made: That of those that go out.
        wider: Whether what comes in takes more bytes than the weights.
    """

    name: str
    stack: str
    role: str
    weights: str
    given: str
    made: str
    wider: bool


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The layers in the order in which they ran, without those that ran under autocast.

    Attributes:
        layers: The layers.
        source: Of each stack whose first layer is given more than its weights hold, the last module with
            weights before it that gives out as much, and the float type of that module's weights.
        inside: Of each other stack in which it gets wider on the way, the layer that makes it so, with the
            float types among its weights.
        meant: Whether the model says that its residual stream is meant to be in float32.
    """

    layers: tuple[LayerPrecision, ...] = ()
    source: tuple[tuple[str, str, str], ...] = ()
    inside: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    meant: bool = False
