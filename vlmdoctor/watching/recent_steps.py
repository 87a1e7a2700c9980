"""The steps of a run in memory, thinned when there are very many."""

from __future__ import annotations

from vlmdoctor.evidence.steps import Step

KEPT = 20_000
START = 200  # the first steps say the most about what is wrong, and are never thinned


class RecentSteps:
    """At most about `KEPT` steps: whenever there are more, every other one is dropped, of the measured and of
    the unmeasured ones alike; the first `START` and the latest stay."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def add(self, step: Step) -> None:
        """Appends a step."""
        self.steps.append(step)
        if len(self.steps) > KEPT:
            self._thin()

    def _thin(self) -> None:
        kept, seen = self.steps[:START], [0, 0]
        for step in self.steps[START:-1]:
            measured = step.grad_norm is not None
            seen[measured] += 1
            if seen[measured] % 2:
                kept.append(step)
        self.steps = [*kept, self.steps[-1]]
