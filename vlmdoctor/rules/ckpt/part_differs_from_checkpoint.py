"""part-differs-from-checkpoint: one part has other weights than the checkpoint, all others are equal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlmdoctor.evidence.checkpoint import Checkpoint, Weight
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.ckpt._healthy import called, sample_checkpoint
from vlmdoctor.rules.places import places

ROUNDED = 0.005  # relative distance: the rounding of a conversion to bfloat16 and back
NEARLY_ALL = 0.9


@rule("part-differs-from-checkpoint", "CKPT104")
def part_differs_from_checkpoint(checkpoint: Checkpoint) -> Iterator[Finding]:
    """One part has other weights than the checkpoint, while all others have exactly the checkpoint's.

    ## Why it matters
    Models that build their vision tower from its own name on the hub load the public weights over the
    fine-tuned ones, and log at most one line ([Q-Instruct
    13](https://github.com/Q-Future/Q-Instruct/issues/13)). Both are good weights, so nothing looks broken;
    the model is worse than its checkpoint.

    ## Confidence and false positives
    Measured: the part's values are related to the checkpoint's and not equal, in nearly all of its tensors
    and by more than rounding, while those of the other parts are equal. That the part was reloaded is
    assumed; a part that was trained alone since looks the same, so it is a warning.

    ## What to do
    Load the checkpoint last, or keep the tower from loading its own weights (`delay_load`, no
    `mm_vision_tower` name in the configuration).
    """
    compared = [
        w for w in checkpoint.weights if w.key is not None and w.distance is not None and not w.adapter
    ]
    roles = dict.fromkeys(w.role for w in compared)
    parts = {role: [w for w in compared if w.role == role] for role in roles}
    differing = [role for role, found in parts.items() if _nearly_all(found, equal=False)]
    if len(differing) != 1 or len(parts) < 2:
        return
    role = differing[0]
    others = [w for w in compared if w.role != role]
    if not _nearly_all(others, equal=True):
        return
    changed = parts[role]
    yield Finding(
        f"{called(role)} has other weights than the checkpoint, and all other parts have the checkpoint's",
        Severity.WARNING,
        at=places([w.name for w in changed], [w.name for w in compared]),
        measured={
            "tensors": len(changed),
            "median_distance": sorted(w.distance or 0.0 for w in changed)[len(changed) // 2],
            "equal_elsewhere": sum(bool(w.equal) for w in others),
        },
        threshold={"distance": ROUNDED},
        cause="another version of it was loaded over the checkpoint's; assumed, not known: that it was "
        "not trained alone since",
        fix=Fix("load the checkpoint after everything that loads weights of its own"),
    )


def _nearly_all(weights: Sequence[Weight], *, equal: bool) -> bool:
    def fits(weight: Weight) -> bool:
        if equal:
            return bool(weight.equal)
        related = not weight.equal and weight.loaded is not False
        return related and weight.distance is not None and weight.distance > ROUNDED

    return bool(weights) and sum(map(fits, weights)) >= NEARLY_ALL * len(weights)


@part_differs_from_checkpoint.bad
def tower_reloaded() -> Checkpoint:
    return sample_checkpoint(
        lambda w: {"equal": False, "agreement": 0.99, "distance": 0.1} if w.role == "vision" else {}
    )


@part_differs_from_checkpoint.good
def tower_in_half_precision() -> Checkpoint:
    return sample_checkpoint(
        lambda w: {"equal": False, "agreement": 1.0, "distance": 0.002} if w.role == "vision" else {}
    )


@part_differs_from_checkpoint.good
def trained_for_a_while() -> Checkpoint:
    return sample_checkpoint(lambda w: {"equal": False, "agreement": 0.99, "distance": 0.1})
