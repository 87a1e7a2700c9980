"""Whether `check` leaves a trace: hashes all that is reached before and after, over families and the corpus.

python -m benchmarks.hostile.state                       # the hand-written families
python -m benchmarks.hostile.state --corpus --json FILE  # and every healthy case of the detection benchmark
python -m benchmarks.hostile.state --only 'ema*'
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.hostile.fingerprint import changed, fingerprint
from vlmdoctor.subject import Subject


def traces(make: Callable[[], Subject]) -> tuple[list[str], Any]:
    """(what differs after a check in words, its report) of a Subject that is made anew."""
    import vlmdoctor

    torch.manual_seed(0)
    subject = make()
    before = fingerprint(subject)
    report = vlmdoctor.check(subject)
    return changed(before, fingerprint(subject)), report


def main() -> int:
    """Prints each family that was changed and how; 1 where there is one."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hostile.state", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--corpus", action="store_true", help="also the healthy corpus")
    parser.add_argument("--every", type=int, default=1, help="only each so many of the corpus")
    parser.add_argument("--only", default="*", metavar="PATTERN", help="those whose name fits")
    parser.add_argument("--json", type=Path, metavar="FILE", help="what was changed, and the rules that ran")
    given = parser.parse_args()
    from benchmarks.hostile.families_state import FAMILIES

    makers: dict[str, Callable[[], Subject]] = {f"state/{name}": make for name, make in FAMILIES.items()}
    if given.corpus:
        from benchmarks.detection import healthy

        makers |= {case.name: case.make for case in healthy.cases()[:: given.every]}
    makers = {name: make for name, make in makers.items() if fnmatch.fnmatch(name, given.only)}
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    outcomes: dict[str, Any] = {}
    for number, (name, make) in enumerate(makers.items(), 1):
        started = time.process_time()
        try:
            lines, report = traces(make)
            outcomes[name] = {
                "changed": lines,
                "ran": len(report.ran),
                "skipped": dict(report.skipped),
                "crashed": dict(report.crashed),
                "not_kept": report.facts.get("not_kept", []),
            }
        except Exception as error:
            outcomes[name] = {"changed": [f"{type(error).__name__}: {error}"], "ran": 0}
        outcomes[name]["seconds"] = round(time.process_time() - started, 2)
        if outcomes[name]["changed"]:
            print(
                f"[{number}/{len(makers)}] {name}", *outcomes[name]["changed"][:6], sep="\n    ", flush=True
            )
    traced = [name for name, outcome in outcomes.items() if outcome["changed"]]
    print(f"{len(outcomes)} tried, {len(traced)} changed")
    if given.json:
        given.json.write_text(json.dumps(outcomes, indent=1) + "\n", encoding="utf-8")
    return int(bool(traced))


if __name__ == "__main__":
    sys.exit(main())
