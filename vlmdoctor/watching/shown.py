"""How a watcher shows itself: as a table, as a figure, and in a notebook."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vlmdoctor.finding import Finding
from vlmdoctor.notebook.run_view import RunState, run_html
from vlmdoctor.reporters.card import summary_line
from vlmdoctor.runs.schema import row_of_step
from vlmdoctor.watching.guarded import attempted

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from vlmdoctor.evidence.parameters import Parameters
    from vlmdoctor.report import Report
    from vlmdoctor.watching.journal import Journal
    from vlmdoctor.watching.sensor import Sensor

COLUMNS = ("loss", "lr", "supervised_tokens", "images", "grad_norm", "grad_norm_after")


class Shown:
    """What a watcher shows of its run; the numbers are those that were read already."""

    target: str
    _journal: Journal
    _sensor: Sensor
    _known_parameters: Parameters | None
    _first_step: int
    _total_steps: int | None
    _phase: str
    _error: str
    _started: float
    _seconds: float
    _closed: bool
    _failed: bool

    def history(self) -> pandas.DataFrame:
        """The steps so far as a table: one row for each optimizer step, indexed by its number from 0.

        The columns are those of `run.jsonl`. What was not measured at a step is NaN; norms are measured on
        sampled steps. In runs of more than 20,000 steps some are left out.

            loss                 as the model returned it, the mean of accumulated micro-batches
            lr                   learning rate of the first parameter group
            grad_norm            L2 norm over all parameters, before clipping
            grad_norm_after      the same after clipping, as the optimizer saw it
            grad_norm/PART       L2 norm over a part: vision, projector, language, head, other
            grad_norm/layer/NAME L2 norm over a layer
            update_ratio/PART    norm of the update over norm of the weights
            supervised_tokens    labels in the batch that are not masked
            images               images in the batch
        """
        import pandas

        rows = {step.step: row_of_step(step) for step in self._journal.steps}
        table = pandas.DataFrame(list(rows.values()), columns=None if rows else ["step", *COLUMNS])
        first = [name for name in COLUMNS if name in table]
        rest = [name for name in table.columns if name not in (*first, "step")]
        return table.set_index("step")[[*first, *sorted(rest)]].sort_index()

    def plot(self) -> Figure:
        """Loss, gradient norm and size of the updates, by step and part. A notebook shows the figure.

        Raises:
            UserError: There is nothing to plot.
        """
        return self.report().plot()

    def __repr__(self) -> str:
        return f"<Watcher of {self.target}: {self._run_state().line()}>"

    def _repr_html_(self) -> str:
        return run_html(self._run_state())

    def report(self, fail_on: str = "error") -> Report:
        """The judgement of the run."""
        raise NotImplementedError

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found so far."""
        raise NotImplementedError

    def _summary(self) -> str:
        return summary_line(self.report())

    def _run_state(self) -> RunState:
        """What is shown. It is on the host already: nothing is read from the model or its optimizers."""
        steps = self._journal.steps
        norms: dict[str, list[tuple[int, float]]] = {}
        for step in steps:
            for role, norm in step.role_grad_norms.items():
                norms.setdefault(role, []).append((step.step, norm))
        listed = self._known_parameters.parameters if self._known_parameters else ()
        learning = {parameter.role for parameter in listed if parameter.requires_grad}
        seconds = self._seconds if self._closed else time.perf_counter() - self._started
        return RunState(
            target=self.target,
            steps=self._sensor.step,
            first=self._first_step,
            total=self._total_steps,
            seconds=seconds,
            phase="not watched any more" if self._failed and not self._closed else self._phase,
            error=self._error,
            loss=[(step.step, step.loss) for step in steps if step.loss is not None],
            norms=norms,
            frozen=tuple({parameter.role: None for parameter in listed if parameter.role not in learning}),
            findings=self.findings,
            closing=attempted(self._summary, otherwise="") if self._closed else "",
        )
