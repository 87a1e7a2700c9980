"""Starting CUDA in a process that can be killed: the driver's own word, asked for by `--live` only."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.evidence.environment.facts import Live
from vlmdoctor.probes.machine.nvml import finish, start

TIMEOUT = 60.0


def with_live(
    environment: Environment, environ: Mapping[str, str] | None = None, seconds: float = TIMEOUT
) -> Environment:
    """The snapshot with what `cuInit` said."""
    process = start("live_child.py", os.environ if environ is None else environ)
    state, said = finish(process, seconds)
    live = Live(state=state)
    if state == "answered" and isinstance(said, dict):
        live = Live(state=said.get("state", "crashed"), code=said.get("code"), devices=said.get("devices"))
    unseen = {name: reason for name, reason in environment.unseen.items() if name != "live"}
    if live.state == "absent":
        unseen["live"] = "there is no libcuda.so.1 to start"
    return dataclasses.replace(environment, live=live, unseen=unseen)
