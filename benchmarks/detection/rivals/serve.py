"""The process in a tool's environment: takes names of cases, line by line, and answers with what was said."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import warnings
from typing import Any


def main(tool: str) -> None:
    """Answers each line of stdin with a line of JSON; whatever else is printed then goes nowhere."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    import torch

    from benchmarks.detection.corpus import by_name
    from benchmarks.detection.rivals.rival import rival

    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    cases, examined_by = by_name(), rival(tool)
    print("{}", file=answers, flush=True)  # it is ready
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silent, stream)
    for line in sys.stdin:
        name = line.strip()
        answer: dict[str, Any] = {"case": name}
        try:
            torch.manual_seed(0)
            subject = cases[name].make()
            started = time.process_time()
            said = list(examined_by.examine(subject))
            answer["seconds"] = round(time.process_time() - started, 2)
            answer["said"] = [[one.severity, one.check, one.message[:1000]] for one in said]
        except Exception as error:
            answer["error"] = f"{type(error).__name__}: {str(error)[:300]}"
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
