"""accumulation-mismatch: accumulated micro-batches differ from one large batch."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.influence import Influence
from vlmdoctor.evidence.micro_batches import BatchNorm, MicroBatches
from vlmdoctor.evidence.training_args import TrainingArgs
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule

_NORM_FIX = Fix(
    "normalise each row separately, or keep the statistics that were loaded",
    ("torch.nn.GroupNorm(32, channels)", "batch_norm.eval()  # after each model.train()"),
)


@rule("accumulation-mismatch", "LOSS330", formerly=("micro-batches-differ",))
def accumulation_mismatch(
    micro: MicroBatches, arguments: TrainingArgs | None, influence: Influence | None
) -> Iterator[Finding]:
    """Gradient accumulation over micro-batches differs from one large batch.

    ## Why it matters
    Gradient accumulation replaces a batch that does not fit into memory. Where rows of a batch affect each
    other, it does not: batch normalisation takes its mean and variance from the micro-batch, even from a
    single image, and a contrastive loss compares with the rows of the micro-batch only. Dividing the loss by
    the number of steps fixes neither.

    ## Confidence and false positives
    The batch was split into its rows, with their own images and padding as it was, and the parts were run one
    by one, in training mode but for dropout. A normalisation is named where its output for the same input
    changed with the other rows. A loss is named where it is outside the range of the parts' losses, so that
    it is no mean of them, whatever its weights. It is a warning where the training arguments ask for
    accumulation. Otherwise only a batch of one row that raises is reported, since the last one of an epoch
    may be such a batch. Experts, whose load may be balanced over a batch, and frozen statistics are not
    judged, nor are rows that leak into each other in evaluation mode, which is a fault of its own.

    ## What to do
    Use GroupNorm or LayerNorm, or put the batch normalisation into evaluation mode; gather the features of
    all micro-batches before a contrastive loss.
    """
    steps = arguments.accumulation if arguments is not None else 1
    if micro.raised is not None:
        yield _raises(micro, steps)
    elif steps < 2 or _leaks(influence):
        return
    elif micro.rows == 1 and micro.norms:
        yield _alone(micro, micro.norms[0], steps)
    elif micro.first_norm is not None:
        yield _normalised(micro, micro.first_norm, steps)
    elif not micro.is_a_mean and not micro.experts:
        yield _compared(micro, steps)


def _leaks(influence: Influence | None) -> bool:
    try:
        return influence is not None and influence.of("another-sample").moves
    except Unavailable:
        return False


def _raises(micro: MicroBatches, steps: int) -> Finding:
    return Finding(
        f"{micro.raised} can't normalise a batch of one row",
        Severity.WARNING if steps > 1 else Severity.INFO,
        at=(micro.raised or "",),
        measured={"rows": micro.rows, "loss": micro.loss},
        cause="it takes its mean and variance over the rows, and one row has none; an epoch may end with "
        "one row",
        fix=Fix("use LayerNorm there, or leave the last batch out", ("DataLoader(..., drop_last=True)",)),
    )


def _alone(micro: MicroBatches, norm: BatchNorm, steps: int) -> Finding:
    return Finding(
        f"{norm.name} normalises each batch of one row separately: {steps} of them differ from one batch of "
        f"{steps}",
        Severity.WARNING,
        at=tuple(n.name for n in micro.norms),
        measured={"rows": 1, "accumulation_steps": steps},
        cause=f"{norm.name} is a {norm.module_class} in training mode, whose mean and variance come from the "
        "micro-batch and not from the accumulated batch",
        fix=_NORM_FIX,
    )


def _normalised(micro: MicroBatches, norm: BatchNorm, steps: int) -> Finding:
    return Finding(
        f"{steps} accumulated micro-batches differ from one large batch: they are normalised separately",
        Severity.WARNING,
        at=tuple(n.name for n in micro.norms if n.moved > micro.rounding),
        measured={"loss": micro.loss, "losses_of_its_parts": list(micro.losses), "output_moved": norm.moved},
        threshold={"output_moved": micro.rounding},
        cause=f"{norm.name} is a {norm.module_class} in training mode: for the same rows its output depends "
        "on the other rows of the batch",
        fix=_NORM_FIX,
    )


def _compared(micro: MicroBatches, steps: int) -> Finding:
    low, high = min(micro.losses), max(micro.losses)
    return Finding(
        f"{steps} accumulated micro-batches differ from one large batch: the loss compares its rows",
        Severity.WARNING,
        at=("the loss",),
        measured={"loss": micro.loss, "losses_of_its_parts": list(micro.losses)},
        threshold={"loss": f"{low:.4g} to {high:.4g}"},
        cause="the loss is no mean of its rows' losses, as with a contrastive loss: a micro-batch has fewer "
        "rows to compare with",
        fix=Fix("gather the features of all micro-batches first, or use a loss of pairs (as SigLIP's)"),
    )


@accumulation_mismatch.bad
def batch_norm_in_the_projector() -> tuple[MicroBatches, TrainingArgs]:
    norm = BatchNorm(name="model.projector.norm", module_class="BatchNorm1d", moved=0.8)
    return MicroBatches(rows=4, loss=3.7, losses=(4.1, 3.9, 4.3, 4.0), norms=(norm,)), TrainingArgs(
        accumulation=8
    )


@accumulation_mismatch.bad
def one_image_at_a_time() -> tuple[MicroBatches, TrainingArgs]:
    norm = BatchNorm(name="visual.bn1", module_class="BatchNorm2d")
    return MicroBatches(rows=1, loss=3.7, losses=(), norms=(norm,)), TrainingArgs(accumulation=8)


@accumulation_mismatch.bad
def contrastive() -> tuple[MicroBatches, TrainingArgs]:
    return MicroBatches(rows=4, loss=1.42, losses=(0.0, 0.0, 0.0, 0.0)), TrainingArgs(accumulation=4)


@accumulation_mismatch.bad
def one_row_raises() -> MicroBatches:
    norm = BatchNorm(name="projector.norm", module_class="BatchNorm1d")
    return MicroBatches(rows=2, loss=3.7, norms=(norm,), raised="projector.norm")


@accumulation_mismatch.good
def a_mean_over_tokens() -> tuple[MicroBatches, TrainingArgs]:
    return MicroBatches(rows=4, loss=3.9, losses=(4.1, 3.7, 4.3, 3.6)), TrainingArgs(accumulation=8)


@accumulation_mismatch.good
def statistics_as_loaded() -> tuple[MicroBatches, TrainingArgs]:
    """Frozen batch normalisation is in evaluation mode and takes nothing from the batch."""
    return MicroBatches(rows=2, loss=3.9, losses=(4.1, 3.7)), TrainingArgs(accumulation=8)


@accumulation_mismatch.good
def load_balanced_over_the_batch() -> tuple[MicroBatches, TrainingArgs]:
    return MicroBatches(rows=2, loss=3.5, losses=(4.1, 3.7), experts=True), TrainingArgs(accumulation=8)


@accumulation_mismatch.good
def from_scratch_in_large_batches() -> MicroBatches:
    norm = BatchNorm(name="stem.1", module_class="BatchNorm2d", moved=0.4)
    return MicroBatches(rows=4, loss=3.7, losses=(4.1, 3.9, 4.3, 4.0), norms=(norm,))
