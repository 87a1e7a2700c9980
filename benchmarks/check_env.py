"""How long `vlmdoctor check-env` takes beside the reports that people are asked for, in one run.

Each command is started several times as a process of its own, in turn, so that what else the machine does
hits all of them alike; reported are the medians and their ratios to check-env. The aim is 10 or more.

    python benchmarks/check_env.py
    python benchmarks/check_env.py --rounds 9 --output-format json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time

COMMANDS = {
    "vlmdoctor check-env": [sys.executable, "-m", "vlmdoctor", "check-env"],
    "python -m torch.utils.collect_env": [sys.executable, "-m", "torch.utils.collect_env"],
    "accelerate env": [sys.executable, "-m", "accelerate.commands.accelerate_cli", "env"],
    "transformers env": [sys.executable, "-m", "transformers.cli.transformers", "env"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}


def seconds(command: list[str]) -> float | None:
    """The wall time of one start; None where the command fails (check-env with findings does not)."""
    started = time.perf_counter()
    done = subprocess.run(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env={**os.environ},
    )
    taken = time.perf_counter() - started
    return taken if done.returncode in (0, 1) else None


def measure(rounds: int) -> dict[str, list[float]]:
    """Command -> its times; the first round, which warms the disk, does not count."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(rounds + 1):
        for name, command in COMMANDS.items():
            taken = seconds(command)
            if number and taken is not None:
                times[name].append(taken)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output-format", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    medians = {name: statistics.median(found) for name, found in measure(arguments.rounds).items() if found}
    own = medians["vlmdoctor check-env"]
    ratios = {name: median / own for name, median in medians.items()}
    if arguments.output_format == "json":
        print(json.dumps({"seconds": medians, "ratios": ratios, "rounds": arguments.rounds}))
        return
    width = min(max(map(len, COMMANDS)), shutil.get_terminal_size().columns - 20)
    for name in COMMANDS:
        if name in medians:
            print(f"{name:<{width}}  {medians[name]:7.2f} s  {ratios[name]:6.1f} x")
        else:
            print(f"{name:<{width}}  does not run here")


if __name__ == "__main__":
    main()
