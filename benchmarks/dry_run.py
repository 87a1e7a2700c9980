"""Time and memory of the dry run: against size, and over every family that transformers has.

    python benchmarks/dry_run.py                       # Qwen2.5-VL and LLaVA at full size, a trillion
    python benchmarks/dry_run.py --sweep               # one step of every image-text-to-text family
    python benchmarks/dry_run.py --sweep llava smolvlm # of these alone
    python benchmarks/dry_run.py --sweep --text        # one step of every decoder-only family

Each line: the model, its parameters, seconds of processor time to lay it out and to run forward and
backward, the peak memory of its process, and how it ended. Every model has a process of its own, which is
ended when it takes too long, so that one family can't spoil the others.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, get_context
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto as auto

from vlmdoctor.errors import Unavailable
from vlmdoctor.probes.dry_run.shapes import shapes_of
from vlmdoctor.targets.synthetic import batch_for, consistent, default_config

LONGEST = 60  # seconds of processor time for one family


@dataclass(frozen=True)
class Row:
    """How the dry run of one model ended.

    Attributes:
        outcome: `carried`, `forward only` (it computes no loss), `raises`, `not carried` or `not built`.
    """

    outcome: str
    why: str = ""
    parameters: int = 0
    building: float = 0.0
    running: float = 0.0
    memory: float = 0.0

    def line(self, name: str) -> str:
        """The row as it is printed."""
        size = f"{self.parameters / 1e9:8.1f} B" if self.parameters else f"{'':10}"
        return (
            f"{name:24} {size} {self.building:5.1f} s {self.running:5.1f} s {self.memory:5.2f} GB  "
            f"{self.outcome}{': ' if self.why else ''}{self.why[:120]}"
        )


def trillion() -> Any:
    """LLaVA with a language model of a trillion parameters."""
    config = transformers.LlavaConfig()
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 25600, 102400, 96
    text.num_attention_heads = text.num_key_value_heads = 200
    text.head_dim = 128
    return consistent(config)


SIZES: dict[str, Callable[[], Any]] = {
    "llava": lambda: default_config("llava"),
    "qwen2_vl": lambda: default_config("qwen2_vl"),
    "qwen2_5_vl": lambda: default_config("qwen2_5_vl"),
    "a trillion": trillion,
}


def one(make: Callable[[], Any], mapping: Any) -> Row:
    """One step of the model whose configuration `make` gives."""
    started = time.process_time()
    try:
        config = make()
        model_class = mapping[type(config)]
        with torch.device("meta"):
            model = model_class._from_config(config)
        batch = batch_for(model, batch_size=1)
    except Exception as error:
        return Row("not built", f"{type(error).__name__}: {_line(error)}")
    built = time.process_time()
    try:
        shapes = shapes_of(model, batch, dtype=torch.bfloat16)
    except Unavailable as reason:
        return Row("not carried", str(reason))
    outcome, why = "carried", ""
    if shapes.failure is not None:
        outcome, why = "raises", f"{shapes.failure.module}: {_line(shapes.failure.message)}"
    elif not shapes.loss:
        outcome, why = "forward only", "it computes no loss"
    return Row(
        outcome,
        why,
        shapes.parameters,
        built - started,
        time.process_time() - built,
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    )


def sweep(models: dict[str, Callable[[], Any]], mapping: Any, jobs: int) -> None:
    """Runs every model in a process of its own, `jobs` at once, and prints a line for each."""
    context = get_context("fork")
    waiting, running, ended = list(models), {}, Counter()
    largest, started = 0.0, time.perf_counter()
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(models[name], mapping, theirs))
            process.start()
            theirs.close()
            running[ours] = (name, process)
        for end in connection.wait(list(running)):
            name, process = running.pop(end)
            row = _received(end)
            process.join()
            ended[row.outcome] += 1
            largest = max(largest, row.memory)
            print(row.line(name), flush=True)
    told = ", ".join(f"{count} {outcome}" for outcome, count in ended.most_common())
    print(f"{told}; {time.perf_counter() - started:.0f} s altogether, {largest:.2f} GB at most")


def _child(make: Callable[[], Any], mapping: Any, end: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (LONGEST, LONGEST))
    end.send(one(make, mapping))


def _received(end: Any) -> Row:
    try:
        return end.recv()
    except EOFError:
        return Row("not carried", f"its process ended: more than {LONGEST} s, or out of memory")


def _line(error: Any) -> str:
    return " ".join((str(error).strip().splitlines() or [""])[0].split())


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    options.add_argument("--sweep", nargs="*", metavar="FAMILY", help="every family, or those named")
    options.add_argument("--text", action="store_true", help="decoder-only families, not those that see")
    options.add_argument("--jobs", type=int, default=2, help="how many at once")
    given = options.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    if given.sweep is None:
        sweep(SIZES, auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, jobs=1)
        return
    kind = "CAUSAL_LM" if given.text else "IMAGE_TEXT_TO_TEXT"
    known = getattr(auto, f"MODEL_FOR_{kind}_MAPPING_NAMES")
    if missing := set(given.sweep) - set(known):
        sys.exit(f"transformers {transformers.__version__} has no {', '.join(sorted(missing))} among these.")
    chosen = {name: (lambda name=name: default_config(name)) for name in given.sweep or known}
    sweep(chosen, getattr(auto, f"MODEL_FOR_{kind}_MAPPING"), given.jobs)


if __name__ == "__main__":
    main()
