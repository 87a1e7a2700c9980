"""batchnorm-not-in-eval: batch normalisation with frozen weights whose running statistics go on changing."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.batch_norms import BatchNorms, RunningNorm
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import counted


@rule(
    "batchnorm-not-in-eval",
    "PARAM120",
    formerly=("frozen-statistics-move",),
    explains=("accumulation-mismatch",),
)
def batchnorm_not_in_eval(batch_norms: BatchNorms) -> Iterator[Finding]:
    """BatchNorm in training mode with frozen weights: its running statistics change.

    ## Why it matters
    `requires_grad_(False)` stops gradients and nothing else. In training mode batch normalisation takes mean
    and variance from the batch, and writes them into its running statistics: a vision tower that is meant to
    stay as it was gives other features from step to step, with small batches noisy ones, and others again
    in evaluation. The saved tower is not the one that was loaded.

    ## Confidence and false positives
    Modes and flags are read off the modules; such a module changes its statistics in each forward
    pass. A warning, since a loop may put the tower into evaluation mode after it was given.
    Silent where the model as a whole is in evaluation mode, and where the tower's own `train` keeps its
    normalisations out of it.

    ## What to do
    Put them into evaluation mode after each `model.train()`, or see to it in the tower:

        def train(self, mode=True):
            super().train(mode)
            self.vision_tower.eval()
            return self
    """
    moving = [norm for norm in batch_norms.norms if norm.training and norm.frozen]
    if not batch_norms.training or not moving:
        return
    yield Finding(
        f"{counted(len(moving), 'batch normalisation')} with frozen weights "
        f"{'goes' if len(moving) == 1 else 'go'} on changing {'its' if len(moving) == 1 else 'their'} "
        "running statistics",
        Severity.WARNING,
        at=tuple(norm.name for norm in moving)[:8],
        measured={"frozen_in_training_mode": len(moving), "of": len(batch_norms.norms)},
        threshold={"frozen_in_training_mode": 0},
        cause=f"{moving[0].name} is a {moving[0].module_class} in training mode; assumed, not known: that "
        "training leaves it there",
        fix=Fix("put them into evaluation mode after each model.train()", ("model.vision_tower.eval()",)),
    )


def _tower(*, training: bool, frozen: bool) -> tuple[RunningNorm, ...]:
    return tuple(
        RunningNorm(
            name=f"cnn.bn{n}", module_class="BatchNorm2d", role="vision", training=training, frozen=frozen
        )
        for n in (1, 2, 3)
    )


@batchnorm_not_in_eval.bad
def frozen_by_requires_grad_alone() -> BatchNorms:
    return BatchNorms(training=True, norms=_tower(training=True, frozen=True))


@batchnorm_not_in_eval.good
def trained_from_scratch() -> BatchNorms:
    return BatchNorms(training=True, norms=_tower(training=True, frozen=False))


@batchnorm_not_in_eval.good
def kept_in_evaluation_mode() -> BatchNorms:
    return BatchNorms(training=True, norms=_tower(training=False, frozen=True))


@batchnorm_not_in_eval.good
def not_yet_in_training_mode() -> BatchNorms:
    return BatchNorms(training=False, norms=_tower(training=False, frozen=True))
