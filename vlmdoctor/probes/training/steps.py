"""What happened over optimizer steps: live from a watched run, or read back from a recorded one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.backward import Backward
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.probes.training.trial_steps import trial_steps
from vlmdoctor.subject import Subject


def probe(subject: Subject, gather: Callable[[type], Any]) -> Steps:
    """Takes a few optimizer steps, watches them and undoes them."""
    # A pass that raises is reported by its own rule: no step can be taken then.
    if gather(Backward).failure is not None:
        raise Unavailable("the backward pass raises")

    return trial_steps(subject)
