"""An environment for each tool, made once and used again."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.detection.rivals.rival import Rival

ROOT = Path(__file__).resolve().parents[3]


def python_of(rival: Rival, folder: Path) -> Path:
    """The interpreter of the tool's environment under `folder`; made where it is not there yet."""
    home = folder.resolve() / rival.name
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    made = home / "made-for"
    if not made.exists() or made.read_text(encoding="utf-8") != rival.requirement:
        print(f"making an environment for {rival.requirement} in {home}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        wanted = ["-c", str(ROOT / "constraints.txt"), rival.requirement, "-e", f"{ROOT}[lora]"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *wanted], check=True)
        made.write_text(rival.requirement, encoding="utf-8")
    return python
