"""How much `vlmdoctor check` finds, and how often it is wrong.

python -m benchmarks.detection                         # both corpora, two processes
python -m benchmarks.detection --only 'vlm/*' --jobs 1
python -m benchmarks.detection --only '*E03*' --verbose
python -m benchmarks.detection --depth shapes          # the healthy corpus, by the dry run of factories
python -m benchmarks.detection --json out.json --markdown docs/detection.md
python -m benchmarks.detection --rivals --environments DIR [--only PAT]   # other tools, kept for the table
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from pathlib import Path

from benchmarks.detection.corpus import by_name
from benchmarks.detection.rivals.rival import NAMES
from benchmarks.detection.rivals.run import run_rivals
from benchmarks.detection.runner import SHAPES, TIMEOUT, Outcome, run_all
from benchmarks.detection.score import one_line, score
from benchmarks.detection.table import markdown, summary


def main() -> int:
    """Runs the cases and prints what came of them; 1 where a healthy case gave an error."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.detection", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "--only", action="append", metavar="PATTERN", help="cases whose name fits, with * and ?"
    )
    parser.add_argument("--corpus", choices=("healthy", "faults"), help="one of the two corpora")
    parser.add_argument(
        "--depth",
        choices=(SHAPES,),
        help="build the healthy cases without weights, as check FACTORY --depth shapes does",
    )
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds for one case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every outcome")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the table for the documentation")
    parser.add_argument(
        "--verbose", action="store_true", help="every finding, also of cases that are as they should be"
    )
    parser.add_argument(
        "--rivals",
        nargs="*",
        choices=NAMES,
        metavar="TOOL",
        help="run other tools instead (all, or those named) and keep what they say for the table",
    )
    parser.add_argument(
        "--environments", type=Path, metavar="DIR", help="where their environments are, or will be made"
    )
    parser.add_argument("--list", action="store_true", help="name the cases and run none")
    given = parser.parse_args()
    cases = by_name()
    patterns = given.only or ["*"]
    corpus = "healthy" if given.depth else given.corpus  # most faults need a real pass
    names = [
        name
        for name, case in cases.items()
        if any(fnmatch.fnmatch(name, pattern) or pattern in name for pattern in patterns)
        and corpus in (None, "faults" if case.fault else "healthy")
    ]
    if given.list:
        print("\n".join(names))
        return 0
    if not names:
        print("no case fits", file=sys.stderr)
        return 2
    if given.rivals is not None:
        if given.environments is None:
            parser.error("--rivals needs --environments DIR, the folder for their environments")
        return _rivals(names, given.environments, given.rivals or list(NAMES), given.jobs)
    done = 0

    def told(outcome: Outcome) -> None:
        nonlocal done
        done += 1
        line = one_line(cases[outcome["case"]], outcome, verbose=given.verbose)
        if line:
            print(f"[{done:3}/{len(names)}] {line}", file=sys.stderr, flush=True)

    outcomes = run_all(names, given.jobs, given.timeout, told, given.depth)
    scored = score([cases[name] for name in names], outcomes)
    print(summary(scored))
    if given.json:
        given.json.write_text(json.dumps(scored.to_dict(), indent=1) + "\n", encoding="utf-8")
    if given.markdown:
        given.markdown.write_text(markdown(scored), encoding="utf-8")
    return int(scored.healthy_errors > 0)


def _rivals(names: list[str], folder: Path, tools: list[str], jobs: int) -> int:
    def told(tool: str, answer: Outcome) -> None:
        said = answer.get("error") or ", ".join(f"{one[0]} {one[1]}" for one in answer["said"])
        print(f"{tool} {answer['case']}: {said or 'nothing'}", file=sys.stderr, flush=True)

    run_rivals(names, folder, tools, jobs, told)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
