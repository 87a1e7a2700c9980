"""The newest run under runs/, found by its files; no torch is imported."""

from __future__ import annotations

from pathlib import Path

RUNS = Path("runs")  # the parent of every folder that --out does not name
RECORDED = "run.jsonl"
CHECKPOINTS = "checkpoints/step-*"


def newest_run(holding: str, under: Path = RUNS) -> Path | None:
    """The run folder whose files of that pattern were changed last; None where there is none."""
    found = {}
    for path in under.glob(f"*/{holding}"):
        folder = under / path.relative_to(under).parts[0]
        try:
            found[path] = (path.stat().st_mtime_ns, folder)
        except OSError:
            continue  # it has gone since it was listed
    return max(found.values())[1] if found else None
