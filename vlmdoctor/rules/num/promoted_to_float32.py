"""promoted-to-float32: activations wider than the weights run through most layers of a stack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlmdoctor.evidence.precision import LayerPrecision, Precision
from vlmdoctor.finding import Finding, Fix, Inferred, Severity
from vlmdoctor.rulebook import rule

MOST = 0.5  # of a stack's layers


@rule("promoted-to-float32", "NUM302")
def promoted_to_float32(precision: Precision) -> Iterator[Finding]:
    """Half-precision layers get float32 activations: a cast is missing.

    ## Why it matters
    Where two float types meet in an addition, in `torch.cat` or in `torch.where`, torch takes the wider one
    and raises nothing. A projector that was left in float32, a table of positions or a scale in float32 thus
    turns the residual stream of the whole decoder into float32, if each layer casts its input to its own
    weights: twice the memory for its activations, and twice the time for its additions.

    ## Confidence and false positives
    The dtypes of each layer's inputs and outputs are read in one forward pass, and compared with the dtype of
    most of the layer's weights; layers under autocast are not judged. It is reported where more than half of
    a stack is affected. It is a warning where the module or layer that outputs the wider dtype is known, and
    for information where it is not, since a model may cast on purpose. Nothing is reported where the
    configuration asks for it (`residual_in_fp32`).

    ## What to do
    Cast at the interface, to the dtype of the text embeddings:

        features = features.to(inputs_embeds.dtype)
    """
    if precision.meant:
        return
    for stack in dict.fromkeys(layer.stack for layer in precision.layers):
        layers = [layer for layer in precision.layers if layer.stack == stack]
        wide = [layer for layer in layers if layer.wider]
        if len(wide) > MOST * len(layers):
            yield _promoted(precision, stack, layers, wide)


def _promoted(
    precision: Precision, stack: str, layers: Sequence[LayerPrecision], wide: Sequence[LayerPrecision]
) -> Finding:
    given, weights = wide[0].given, wide[0].weights
    source = next((entry[1:] for entry in precision.source if entry[0] == stack), None)
    inside = next((entry[1:] for entry in precision.inside if entry[0] == stack), None)
    where: tuple[str, ...] = ()
    cause: str = Inferred(f"what makes {given} of them before {wide[0].name} was not established")
    fix = Fix("cast before the first layer", (f"x = x.to(torch.{weights})",))
    if source is not None:
        name, held = source
        where = (name,)
        cause = f"{name}, whose weights are in {held}, outputs {given}, and so the sum is {given} too"
        fix = Fix("cast its output", (f"features = features.to(torch.{weights})",))
    elif inside is not None:
        name, kinds = inside
        where = (name,)
        cause = f"{name} gets {weights} and outputs {given}"
        if given in kinds:
            cause += f", the dtype of some of its own weights: {' and '.join(kinds)}"
        fix = Fix("keep all weights of the layers in one dtype, or cast what they add")
    return Finding(
        f"{given} activations run through {len(wide)} of {len(layers)} layers of {weights} weights "
        f"in {stack}",
        Severity.WARNING if where else Severity.INFO,
        at=(*where, stack),
        measured={"layers": len(wide), "of": len(layers), "activations": given, "weights": weights},
        threshold={"activations": weights},
        cause=cause,
        fix=fix,
    )


def _stack(*given: str, weights: str = "bfloat16") -> tuple[LayerPrecision, ...]:
    # As text, float32 is after bfloat16, and wider.
    return tuple(
        LayerPrecision(
            name=f"lm.layers.{n}",
            stack="lm.layers",
            role="language",
            weights=weights,
            given=kind,
            made=kind,
            wider=kind > weights,
        )
        for n, kind in enumerate(given)
    )


@promoted_to_float32.bad
def projector_in_float32() -> Precision:
    return Precision(layers=_stack(*["float32"] * 4), source=(("lm.layers", "vision_proj", "float32"),))


@promoted_to_float32.bad
def scale_in_float32() -> Precision:
    inside = ("lm.layers", "lm.layers.0", ("bfloat16", "float32"))
    return Precision(layers=_stack("bfloat16", "float32", "float32", "float32"), inside=(inside,))


@promoted_to_float32.bad
def cast_by_nobody_known() -> Precision:
    return Precision(layers=_stack("float32", "float32"))


@promoted_to_float32.good
def residual_stream_in_float32_on_purpose() -> Precision:
    """As Mamba's, which says so in its configuration."""
    layers = _stack("bfloat16", "float32", "float32", "float32")
    return Precision(layers=layers, inside=(("lm.layers", "lm.layers.0", ("bfloat16",)),), meant=True)


@promoted_to_float32.good
def all_in_bfloat16() -> Precision:
    return Precision(layers=_stack("bfloat16", "bfloat16"))


@promoted_to_float32.good
def master_weights() -> Precision:
    """Weights in float32 and activations in bfloat16: that is how mixed precision is done by hand."""
    return Precision(layers=_stack("bfloat16", "bfloat16", weights="float32"))
