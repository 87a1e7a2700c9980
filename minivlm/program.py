"""How a program of this installation is started from the shell."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path


def started_as(name: str) -> list[str]:
    """The words that start it: its command where it is on PATH and this installation's, else Python with -m.

    Among several processes it is started by torchrun.
    """
    size = os.environ.get("LOCAL_WORLD_SIZE", "1")
    if size.isdecimal() and int(size) > 1:
        return ["torchrun", "--nproc-per-node", size, "-m", name]
    script = shutil.which(name)
    if script is not None and _beside_this_python(script):
        return [name]
    python = shutil.which("python")
    return ["python" if python and _beside_this_python(python) else sys.executable, "-m", name]


def _beside_this_python(program: str) -> bool:
    return Path(program).absolute().parent == Path(sys.executable).absolute().parent
