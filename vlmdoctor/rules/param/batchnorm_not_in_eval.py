"""batchnorm-not-in-eval: batch normalisation with frozen weights whose running statistics change."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.module_tree import ModuleTree, RunningNorm
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import counted, module_of


@rule(
    "batchnorm-not-in-eval",
    "PARAM120",
    formerly=("frozen-statistics-move",),
    explains=("accumulation-mismatch",),
)
def batchnorm_not_in_eval(tree: ModuleTree) -> Iterator[Finding]:
    """BatchNorm in training mode with frozen weights: its running statistics change.

    ## Why it matters
    `requires_grad_(False)` stops gradients and nothing else. In training mode batch normalisation takes mean
    and variance from the batch, and writes them into its running statistics: a vision tower that should not
    change gives other features from step to step, noisy ones with small batches, and others again in
    evaluation. The saved tower is not the one that was loaded.

    ## Confidence and false positives
    Modes and flags are read from the modules; such a module changes its statistics in each forward pass. It
    is a warning, since a loop may put the tower into evaluation mode later. Nothing is reported where the
    whole model is in evaluation mode, and where the tower's own `train` keeps its normalisations in
    evaluation mode.

    ## What to do
    Put them into evaluation mode after each `model.train()`, or in the tower's own `train`:

        def train(self, mode=True):
            super().train(mode)
            self.vision_tower.eval()
            return self
    """
    moving = [norm for norm in tree.batch_norms if norm.training and norm.frozen]
    if not tree.training or not moving:
        return
    lines = tuple(f"{module_of([f'{norm.name}.weight'])}.eval()" for norm in moving[:4])
    yield Finding(
        f"{counted(len(moving), 'batch normalisation')} with frozen weights "
        f"{'changes' if len(moving) == 1 else 'change'} {'its' if len(moving) == 1 else 'their'} running "
        "statistics",
        Severity.WARNING,
        at=tuple(norm.name for norm in moving)[:8],
        measured={"frozen_in_training_mode": len(moving), "of": len(tree.batch_norms)},
        threshold={"frozen_in_training_mode": 0},
        cause=f"{moving[0].name} is a {moving[0].module_class} in training mode; assumed, not known: that "
        "it stays in training mode",
        fix=Fix(
            "put them into evaluation mode after each model.train()",
            lines,
        ),
    )


def _tower(*, training: bool, frozen: bool) -> tuple[RunningNorm, ...]:
    return tuple(
        RunningNorm(
            name=f"cnn.bn{n}", module_class="BatchNorm2d", role="vision", training=training, frozen=frozen
        )
        for n in (1, 2, 3)
    )


@batchnorm_not_in_eval.bad
def frozen_by_requires_grad_alone() -> ModuleTree:
    return ModuleTree(training=True, batch_norms=_tower(training=True, frozen=True))


@batchnorm_not_in_eval.good
def trained_from_scratch() -> ModuleTree:
    return ModuleTree(training=True, batch_norms=_tower(training=True, frozen=False))


@batchnorm_not_in_eval.good
def kept_in_evaluation_mode() -> ModuleTree:
    return ModuleTree(training=True, batch_norms=_tower(training=False, frozen=True))


@batchnorm_not_in_eval.good
def not_yet_in_training_mode() -> ModuleTree:
    return ModuleTree(training=False, batch_norms=_tower(training=False, frozen=True))
