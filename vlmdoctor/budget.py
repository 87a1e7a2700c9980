"""Gathering evidence within a time."""

from __future__ import annotations

import time
from typing import Any

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable


class BudgetedGatherer(Gatherer):
    """A Gatherer that starts no probe after its time is up, and says why there is no batch."""

    def __init__(
        self,
        *arguments: Any,
        budget: float | None = None,
        missing_batch: str | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(*arguments, **keywords)
        self.budget = budget
        self.missing_batch = missing_batch
        self._started = time.monotonic()

    @property
    def ran_out(self) -> str:
        """Why a probe is not started after its time."""
        return f"the budget of {self.budget or 0:g} s was used up"

    def in_time(self) -> bool:
        """Whether its time is not up yet."""
        return self.budget is None or time.monotonic() - self._started <= self.budget

    def _probe(self, evidence_class: type) -> object:
        if not self.in_time():
            raise Unavailable(self.ran_out)
        try:
            return super()._probe(evidence_class)
        except Unavailable as reason:
            if self.missing_batch is not None and str(reason) == "no batch was given":
                raise Unavailable(self.missing_batch) from None
            raise
