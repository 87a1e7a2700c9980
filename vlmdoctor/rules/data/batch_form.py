"""batch-form: the batch's tensors have lengths or dtypes that do not match."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data

BESIDE_IDS = ("labels", "attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids")


@rule("batch-form", "DATA307", explains=("forward-raises",))
def batch_form(data: Data, forward: Forward | None) -> Iterator[Finding]:
    """Batch tensors of different lengths, or token ids that are not integers.

    ## Why it matters
    Where one tensor is padded and another is not, the model raises an error about shapes that names neither
    ([LlamaFactory 10782](https://github.com/hiyouga/LlamaFactory/issues/10782): `position_ids` were not
    padded to the same multiple as the ids); float ids or labels come from padding with `torch.zeros` or from
    stacking numpy arrays.

    ## Confidence and false positives
    Shapes and dtypes are read from the batch. Nothing is reported where the model's forward pass accepted the
    batch: some models insert the image tokens themselves, so that ids and labels may differ.

    ## What to do
    Pad all tensors that belong to the tokens together, to the same length.
    """
    shapes, dtypes = dict(data.shapes), dict(data.dtypes)
    ids = shapes.get("input_ids")
    if ids is None:
        raise Unavailable("no input_ids were given")
    if forward is None or forward.failure is None or data.encoder_decoder:
        return
    floats = [key for key in ("input_ids", "labels") if dtypes.get(key, "").startswith(("float", "bfloat"))]
    if floats:
        yield Finding(
            f"{' and '.join(floats)} are {dtypes[floats[0]]}, not integers",
            Severity.ERROR,
            at=tuple(floats),
            measured={key: dtypes[key] for key in floats},
            threshold={"dtype": "int64"},
            cause="token ids and labels were made or padded as floats",
            fix=Fix(
                "convert them to integers", tuple(f"batch['{key}'] = batch['{key}'].long()" for key in floats)
            ),
        )
        return
    other = {
        key: shapes[key]
        for key in BESIDE_IDS
        if key in shapes
        and len(ids) == 2
        and len(shapes[key]) in (2, 3)
        and shapes[key][-1] != ids[1]
        and not (key == "attention_mask" and len(shapes[key]) == 3)
    }
    if other:
        key, shape = next(iter(other.items()))
        yield Finding(
            f"{key} has length {shape[-1]}, input_ids has {ids[1]}",
            Severity.ERROR,
            at=tuple(other),
            measured={name: list(size) for name, size in {"input_ids": ids, **other}.items()},
            threshold={"tokens": ids[1]},
            cause="they were padded or truncated separately",
            fix=Fix("pad and truncate all tensors that belong to the tokens together"),
        )


def _refused(**changes: object) -> tuple[Data, Forward]:
    from vlmdoctor.evidence.failure import Failure

    failure = Failure(
        type="RuntimeError", message="The size of tensor a (16) must match the size of tensor b (12)"
    )
    shapes = {"input_ids": (3, 16), "labels": (3, 16), "pixel_values": (2, 3, 8, 8), **changes}
    return healthy_data(shapes=tuple(shapes.items()), dtypes=(("input_ids", "int64"),)), Forward(
        failure=failure
    )


@batch_form.bad
def positions_not_padded() -> tuple[Data, Forward]:
    return _refused(position_ids=(3, 12))


@batch_form.good
def all_alike() -> Data:
    shapes = (("input_ids", (3, 16)), ("position_ids", (3, 3, 16)), ("pixel_values", (2, 3, 8, 8)))
    return healthy_data(shapes=shapes)
