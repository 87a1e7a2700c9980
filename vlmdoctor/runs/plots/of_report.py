"""The figure of a report: of a run its curves, of a check its gradients."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from vlmdoctor.errors import UserError
from vlmdoctor.evidence.backward import Backward
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.finding import Finding
from vlmdoctor.runs.columns import Recording, recording_of_run
from vlmdoctor.runs.plots.grads import norm_panel, ratio_panel
from vlmdoctor.runs.plots.loss import accuracy_panel, loss_panel, lr_panel
from vlmdoctor.runs.plots.marks import Mark, flags, key_inches
from vlmdoctor.runs.plots.one_pass import draw_gradients
from vlmdoctor.runs.plots.style import (
    AXIS_INCHES,
    GAP_INCHES,
    LIGHT,
    TOP_INCHES,
    heading,
    new_figure,
    stack_panels,
    subtitle,
)
from vlmdoctor.runs.verdict import verdict

# A rule that needs a backward pass: why it was skipped is why there are no gradients.
ABOUT_GRADIENTS = "no-gradient"


def figure_of(
    evidence: Iterable[object],
    *,
    target: str,
    findings: Sequence[Finding] = (),
    skipped: Iterable[tuple[str, str]] = (),
) -> Figure:
    """The figure of a report; the arguments are its fields.

    Raises:
        UserError: There is nothing to plot.
    """
    seen = {type(one): one for one in evidence}
    steps, backward = seen.get(Steps), seen.get(Backward)
    # A check takes a few steps of its own, which are no run.
    if isinstance(backward, Backward) and backward.gradients:
        return draw_gradients(backward, target)
    if isinstance(steps, Steps) and steps.steps:
        parameters = seen.get(Parameters)
        known = parameters if isinstance(parameters, Parameters) else Parameters(parameters=())
        return _run(recording_of_run(target, known, steps), findings)
    reason = "no optimizer step was seen" if steps else dict(skipped).get(ABOUT_GRADIENTS)
    raise UserError(f"there is nothing to plot: {reason or 'no gradients were measured'}.")


def _run(recording: Recording, findings: Sequence[Finding]) -> Figure:
    """Loss, accuracy where it was measured, and the gradients of each part, or else the learning rate."""
    panels = [(3.1, loss_panel)]
    if len(recording.evaluation("accuracy")):
        panels.append((1.75, accuracy_panel))
    panels += [(2.5, norm_panel), (1.7, ratio_panel)] if recording.watched else [(0.5, lr_panel)]
    marks = [Mark.of(finding) for finding in findings]
    foot = AXIS_INCHES + key_inches(marks)
    heights = [height for height, _ in panels]
    figure = new_figure(TOP_INCHES + sum(heights) + GAP_INCHES * (len(heights) - 1) + foot, LIGHT)
    axes = stack_panels(figure, heights, LIGHT, foot=foot)
    last = max(recording.last_step or 0, 1)
    axes[0].set_xlim(-0.01 * last, last)
    for place, (_, draw) in zip(axes, panels, strict=True):
        draw(place, recording, LIGHT)
    learned = verdict(
        recording.summary,
        losses=recording.column("loss").values.tolist(),
        steps=(recording.last_step or 0) + 1,
        total=recording.total_steps,
        finished=bool(recording.end.get("finished")),
    )
    heading(figure, LIGHT, learned.headline, subtitle(recording))
    flags(figure, axes, marks, LIGHT)
    return figure
