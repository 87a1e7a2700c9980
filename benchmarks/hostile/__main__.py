"""Hostile input for vlmdoctor: how much was tried, and what failed.

python -m benchmarks.hostile                                  # 10,000 inputs over all classes
python -m benchmarks.hostile --inputs 500 --classes cli,config --seed 3
python -m benchmarks.hostile --only cli:1234                  # one input again, with all that it wrote
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.hostile.harness.registry import InputClass, classes, shares
from benchmarks.hostile.harness.runner import Item, Result, cores, run_all
from benchmarks.hostile.harness.table import document, failures, show, table


def main() -> int:
    """Runs the inputs and prints tried and failed by class; 1 where one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="how many, over all classes")
    parser.add_argument("--classes", metavar="NAMES", help="only these, with commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=cores(), help="worker processes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="every failure, with what was written")
    parser.add_argument("--only", action="append", metavar="CLASS:INDEX", help="these inputs, shown whole")
    parser.add_argument("--list", action="store_true", help="name the classes and run nothing")
    given = parser.parse_args()
    known = classes()
    if given.list:
        print("\n".join(known))
        return 0
    if given.inputs < 1 or given.jobs < 1:
        parser.error("--inputs and --jobs are at least 1")
    chosen = given.classes.split(",") if given.classes else list(known)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        parser.error(f"there is no class {unknown[0]}; there are {', '.join(known)}")
    if given.only:
        return _again(given.only, known, given.seed)
    results: list[Result] = []
    started = time.monotonic()
    groups = [known[name] for name in chosen]
    counts = shares(groups, given.inputs)
    total = sum(counts.values())

    def seen(result: Result) -> None:
        results.append(result)
        if result.faults:
            print(
                f"[{len(results):5}/{total}] {result.reference}: {result.faults[0]}",
                file=sys.stderr,
                flush=True,
            )

    with contextlib.suppress(KeyboardInterrupt):  # what was found until then is printed
        run_all(_items(groups, counts, given.seed), given.jobs, seen)
    print(failures(results, given.seed))
    print(table(results, time.monotonic() - started))
    if given.json:
        given.json.write_text(json.dumps(document(results, given.seed), indent=1) + "\n", encoding="utf-8")
    return int(any(result.faults for result in results))


def _items(chosen: list[InputClass], counts: dict[str, int], seed: int) -> Iterator[Item]:
    """The classes by turns, so that a run that is stopped early has tried all of them."""
    rows = [_numbered(one, seed, counts[one.name]) for one in chosen]
    for turn in itertools.zip_longest(*rows):
        yield from (item for item in turn if item is not None)


def _numbered(group: InputClass, seed: int, count: int) -> Iterator[Item]:
    for index, trial in enumerate(group.inputs(seed, count)):
        yield f"{group.name}:{index}", group, trial


def _again(references: list[str], known: dict[str, InputClass], seed: int) -> int:
    items: list[Item] = []
    for reference in references:
        name, _, number = reference.partition(":")
        if name not in known or not number.isdecimal():
            print(f"there is no input {reference}; give CLASS:INDEX", file=sys.stderr)
            return 2
        trial = next(itertools.islice(known[name].inputs(seed, int(number) + 1), int(number), None))
        items.append((reference, known[name], trial))
    failed = []

    def seen(result: Result) -> None:
        failed.append(bool(result.faults))
        print(show(result))

    run_all(items, 1, seen)
    return int(any(failed))


if __name__ == "__main__":
    raise SystemExit(main())
