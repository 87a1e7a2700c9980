"""The gradients of one backward pass: the norm of each parameter's, in the order of the model, by part."""

from __future__ import annotations

from matplotlib.figure import Figure

from vlmdoctor.evidence.backward import Backward, Gradient
from vlmdoctor.knowledge.parameter_names import ROLES
from vlmdoctor.runs.plots.style import (
    AXIS_INCHES,
    LIGHT,
    TOP_INCHES,
    dress,
    heading,
    new_figure,
    stack_panels,
)

ROW_INCHES = 0.75


def draw_gradients(backward: Backward, target: str) -> Figure:
    """One row of dots for each part: a dot is a parameter tensor, its place the norm of its gradient."""
    parts = {role: [g for g in backward.gradients if g.role == role] for role in ROLES}
    parts = {role: gradients for role, gradients in parts.items() if gradients}
    inches = max(ROW_INCHES * len(parts), 1.2)
    figure = new_figure(TOP_INCHES + inches + AXIS_INCHES, LIGHT)
    axes = stack_panels(figure, [inches], LIGHT, foot=AXIS_INCHES)[0]
    dress(axes, LIGHT, title="Gradient norm of each parameter tensor", last=True)
    axes.set_xlabel("gradient norm (L2)", fontsize=9, color=LIGHT.muted, labelpad=4)
    axes.set_xscale("log")
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x", color=LIGHT.grid, linewidth=0.8)
    axes.set_ylim(len(parts) - 0.5, -0.5)
    axes.set_yticks(range(len(parts)))
    axes.set_yticklabels(list(parts), fontsize=10)
    across = axes.get_yaxis_transform()
    norms = [g.norm for g in backward.gradients if g.norm]
    axes.set_xlim(min(norms, default=0.1) / 3, max(norms, default=1.0) * 3)
    for row, (role, gradients) in enumerate(parts.items()):
        values = [g.norm for g in gradients if g.norm]
        # Spread within the row by their order in the model, so that equal ones do not hide each other.
        spread = [
            row + 0.5 * (place / max(len(values) - 1, 1) - 0.5) * (len(values) > 1)
            for place in range(len(values))
        ]
        axes.scatter(values, spread, s=26, color=LIGHT.roles[role], alpha=0.75, linewidths=0, clip_on=False)
        axes.axhline(row + 0.5, color=LIGHT.grid, linewidth=0.8)
        good = len(values) == len(gradients)
        colour = LIGHT.muted if good else LIGHT.error
        axes.text(1.012, row, in_words(gradients), transform=across, color=colour, fontsize=9, va="center")
    reached = sum(bool(g.norm) for g in backward.gradients)
    headline = f"{reached} of {len(backward.gradients)} trainable tensors get a gradient"
    frozen = backward.parameters - backward.trainable
    about = f"{target}, one backward pass from a loss of {backward.loss:.4g}" + (
        f", {frozen} tensors frozen" if frozen else ""
    )
    heading(figure, LIGHT, headline, about)
    return figure


def in_words(gradients: list[Gradient]) -> str:
    """Such as `4 tensors` or `4 tensors, 2 without`."""
    parts = [f"{len(gradients)} tensor{'s' * (len(gradients) != 1)}"]
    for number, words in (
        (sum(not g.present for g in gradients), "no gradient"),
        (sum(bool(g.zero) for g in gradients), "exactly 0"),
        (sum(g.finite is False for g in gradients), "not finite"),
    ):
        if number:
            parts.append(f"{number} {words}")
    return ", ".join(parts)
