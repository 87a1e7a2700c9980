"""config-contradiction: values of config.json contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.contradictions import Contradiction, Contradictions
from vlmdoctor.evidence.failure import Failure
from vlmdoctor.evidence.shapes import Shapes
from vlmdoctor.finding import Finding, Fix, Proof, Severity
from vlmdoctor.rulebook import rule

MOST_LISTED = 8


@rule(
    "config-contradiction",
    "CFG490",
    explains=("shape-clash", "image-token-count", "images-exceed-context", "sequence-too-long"),
)
def config_contradiction(contradictions: Contradictions) -> Iterator[Finding]:
    """Configuration values contradict each other: the model can't be built or run.

    ## Why it matters
    The exception names tensors (`The size of tensor a (30) must match the size of tensor b (32)`), or nothing
    at all (`index out of range in self`), and comes after the download, on the GPU. The exception does not
    name the field of config.json: heads that are no multiple of the key and value heads, rotary sections or
    factors that don't add up to half a head, a vocabulary smaller than the id of the image token, a feature
    layer that the tower does not have.

    ## Confidence and false positives
    The model fails unchanged, and runs a whole training step, without weights, with the one value in the
    proof line changed: both were tried. Which of the contradicting values is wrong can't be known; the
    smaller change was tried.

    ## What to do
    Set one of the fields named, so that they agree.
    """
    for one in contradictions.found:
        fields = ", ".join(f"{path} = {_value(value)}" for path, value in one.change.items())
        yield Finding(
            message=one.message,
            severity=Severity.ERROR,
            at=tuple(one.fields),
            measured=dict(one.fields),
            cause=f"{'the training step' if one.built else 'building the model'} {one.failed}",
            proof=Proof(fields, one.failed, "a training step runs"),
            fix=Fix(f"make them agree: {fields}, or change {' or '.join(_others(one))}"),
        )


def _value(value: object) -> str:
    long = isinstance(value, list) and len(value) > MOST_LISTED
    return f"a list of {len(value)}" if long else str(value)  # type: ignore[arg-type]


def _others(one: Contradiction) -> list[str]:
    rest = [path for path in one.fields if path not in one.change]
    return rest or ["the value that it has to agree with"]


HEADS = Contradiction(
    message="text_config.num_attention_heads 32 is no multiple of text_config.num_key_value_heads 5",
    fields={"text_config.num_attention_heads": 32, "text_config.num_key_value_heads": 5},
    change={"text_config.num_key_value_heads": 4},
    failed="raises RuntimeError: The size of tensor a (32) must match the size of tensor b (30)",
)


@config_contradiction.bad
def heads_that_key_value_heads_do_not_divide() -> tuple[object, ...]:
    failure = Failure(
        type="RuntimeError", message="The size of tensor a (32) must match the size of tensor b (30)"
    )
    return Contradictions(found=(HEADS,)), Shapes(failure=failure)


@config_contradiction.good
def nothing_to_try() -> Contradictions:
    return Contradictions()
