"""What happened over optimizer steps: live from a watched run, or read back from a recorded one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DEPTH = "steps"
PROBE = "vlmdoctor.probes.training.steps"


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step.

    Gradient norms are those before clipping, unscaled where the gradient scaler is known.

    Attributes:
        step: Counted from 0 over the whole run.
        loss: Loss of the step's batch; None where it was not reported.
        lr: Learning rate of the first parameter group.
        grad_norm: Norm over all parameters; None on steps that were not sampled.
        grad_norm_after: The same after clipping, as the optimizer saw it.
        role_grad_norms: Role -> norm.
        layer_grad_norms: Layer (as in `Parameter.layer`) -> norm.
        role_update_ratios: Role -> norm of the update over the norm of the weights.
        supervised_tokens: Labels that the loss saw in the batch; None where unknown.
        images: Images in the batch (or calls of the vision part, at least whether there were any: 0 means
            none); None where unknown.
    """

    step: int
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    grad_norm_after: float | None = None
    role_grad_norms: Mapping[str, float] = field(default_factory=dict)
    layer_grad_norms: Mapping[str, float] = field(default_factory=dict)
    role_update_ratios: Mapping[str, float] = field(default_factory=dict)
    supervised_tokens: int | None = None
    images: int | None = None


@dataclass(frozen=True, kw_only=True)
class Track:
    """One parameter over the sampled steps; keyed by its canonical name.

    Attributes:
        name: Canonical name, as in `Parameter.name`.
        samples: Sampled optimizer steps while it had requires_grad.
        with_gradient: Of these, those at which it had a gradient.
        zero_gradient: Of these, those at which the gradient was exactly zero.
        nonfinite_gradient: Of these, those at which it held NaN or infinity.
        first_nonfinite: The step of the first of those.
        grad_norm: Median of the finite gradient norms; None without any.
        update_ratio: Median of update norm over weight norm, measured on at most 65,536 elements.
        moved: Sampled steps after which any measured element had changed.
        still: Sampled steps after which none had, although the gradient was not zero.
        changed_fraction: Median share of the measured elements that changed in a step.
    """

    name: str
    samples: int = 0
    with_gradient: int = 0
    zero_gradient: int = 0
    nonfinite_gradient: int = 0
    first_nonfinite: int | None = None
    grad_norm: float | None = None
    update_ratio: float | None = None
    moved: int = 0
    still: int = 0
    changed_fraction: float | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What the model can do on examples that it was not trained on, with the right images and without.

    Attributes:
        step: After which step.
        loss: Loss with the right images.
        loss_shuffled: Loss with every image exchanged for another sample's.
        loss_blank: Loss with blank images.
        accuracy: Share of exactly right answers, 0 to 1; None where not measured.
        accuracy_shuffled: The same with exchanged images.
        samples: How many examples.
    """

    step: int
    loss: float | None = None
    loss_shuffled: float | None = None
    loss_blank: float | None = None
    accuracy: float | None = None
    accuracy_shuffled: float | None = None
    samples: int | None = None


@dataclass(frozen=True, kw_only=True)
class NonFinite:
    """The first NaN or infinity of a run.

    Attributes:
        step: The step.
        where: `loss`, `activation`, `gradient` or `weight`.
        module: The first module, in the order of execution, whose output was not finite while its
            inputs were; None where that could not be established.
        module_class: Its class.
        inputs_finite: Whether the batch itself was finite; None where unknown.
        parameters: Parameters whose gradient or value was not finite (at most a few, nearest the loss first).
        largest: Largest finite absolute value among that module's inputs, None where unknown.
        why_unknown: Why the module is not known.
        inputs: Entries of the batch that were not finite.
        file: The file of the user's own that calls the module; None where that is not known.
        line: The line in it, from 1.
    """

    step: int
    where: str
    module: str | None = None
    module_class: str | None = None
    inputs_finite: bool | None = None
    parameters: tuple[str, ...] = ()
    largest: float | None = None
    why_unknown: str | None = None
    inputs: tuple[str, ...] = ()
    file: str | None = None
    line: int | None = None


@dataclass(frozen=True, kw_only=True)
class Withdrawn:
    """A finding that was made while the run went on, and that no longer holds.

    Attributes:
        rule: The rule's name.
        code: Its code.
        severity: How bad it was.
        message: What it said.
        since: The first step at which it held; None where unknown.
        step: The step at which it no longer held.
    """

    rule: str
    code: str
    severity: str
    message: str
    since: int | None
    step: int


@dataclass(frozen=True, kw_only=True)
class Steps:
    """A run, or a piece of one.

    Attributes:
        steps: In order; unsampled ones may be missing or lack norms.
        tracks: One for each parameter.
        evaluations: In order.
        nonfinite: The first non-finite value, if any.
        planned_steps: How long the run was meant to be; None where unknown.
        finished: Whether it came to its planned end.
        resumed: Whether it continues a run or starts from trained weights, so that the first loss is not that
            of an untrained model; None where unknown.
        accumulates_without_reset: Whether gradients were seen to pile up over optimizer steps
            (never zeroed); None where not established.
        required_accuracy: The share of right answers, 0 to 1, that was asked for; None where none was.
        withdrawn: Findings that held for a while and then no longer, in the order in which they ended.
        last_made: The latest step that was made, also where nothing was recorded of it; None where unknown.
    """

    steps: tuple[Step, ...]
    tracks: tuple[Track, ...] = ()
    evaluations: tuple[Evaluation, ...] = ()
    nonfinite: NonFinite | None = None
    planned_steps: int | None = None
    finished: bool = False
    resumed: bool | None = None
    accumulates_without_reset: bool | None = None
    required_accuracy: float | None = None
    withdrawn: tuple[Withdrawn, ...] = ()
    last_made: int | None = None

    @property
    def made(self) -> int:
        """How many steps were made, those before a resume included; 0 where none was seen."""
        last = max((s.step for s in self.steps), default=-1)
        return max(last, -1 if self.last_made is None else self.last_made) + 1

    @property
    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) where the loss is known."""
        return [(s.step, s.loss) for s in self.steps if s.loss is not None]

    @property
    def sampled(self) -> list[Step]:
        """The steps at which gradients were measured."""
        return [s for s in self.steps if s.grad_norm is not None]
