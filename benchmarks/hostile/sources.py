"""Sources for `check-env` and scripts for `check`: Python, notebooks, shell, Dockerfiles, YAML, odd files."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from benchmarks.hostile.harness.mutate import dumped, mutated, spoiled_bytes, spoiled_lines, spoiled_text
from benchmarks.hostile.harness.texts import file_name, text, utf8
from benchmarks.hostile.harness.trial import Content, Fifo, Folder, Link, Sparse, Trial, numbered

NAME = "sources"

_PYTHON = """import os
import torch
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("OMP_NUM_THREADS", str(4))
if torch.cuda.is_available():
    device = "cuda"
else:
    device = "cpu"
def train(model, loader, optimizer):
    for batch in loader:
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
model = model.cpu()
"""
_SHELL = """#!/bin/bash
#SBATCH --gres=gpu:4
#SBATCH --export=ALL,NCCL_P2P_DISABLE=1
export CUDA_VISIBLE_DEVICES=0,1
export HF_HOME=$(pwd)/cache OMP_NUM_THREADS=`nproc`
if [ -n "$X" ]; then unset CUDA_VISIBLE_DEVICES; fi
cat <<EOF > x.py
import os
EOF
deepspeed --num_gpus 2 train.py --device cpu \\
  --no_cuda
for i in 1 2; do CUDA_VISIBLE_DEVICES=$i python train.py & done
"""
_DOCKER = """FROM nvidia/cuda:12.4.0-base
ENV CUDA_VISIBLE_DEVICES="" \\
    NVIDIA_VISIBLE_DEVICES=void
ARG HF_HUB_OFFLINE=1
RUN export OMP_NUM_THREADS=1 && pip install torch
CMD ["bash", "-c", "CUDA_VISIBLE_DEVICES=0 python train.py"]
"""
_COMPOSE = """services:
  train:
    image: x
    environment:
      - CUDA_VISIBLE_DEVICES=
      - NCCL_DEBUG=INFO
      OMP_NUM_THREADS: "1"
    deploy: {resources: {reservations: {devices: [{driver: nvidia, count: all}]}}}
"""
_ENV = "CUDA_VISIBLE_DEVICES=''\nexport HF_HOME=\"~/x\"\n# c\nOMP_NUM_THREADS = 1\n"
_CELLS = [
    {
        "cell_type": "code",
        "source": ["%env CUDA_VISIBLE_DEVICES=\n", "import torch"],
        "outputs": [],
        "metadata": {},
    },
    {"cell_type": "code", "source": "%%bash\nexport CUDA_VISIBLE_DEVICES=1\n"},
    {"cell_type": "markdown", "source": "# text"},
]
_NOTEBOOK = {
    "cells": _CELLS,
    "metadata": {"kernelspec": {"language": "python"}},
    "nbformat": 4,
    "nbformat_minor": 5,
}
_KINDS: dict[str, str] = {
    "a.py": _PYTHON,
    "b.sh": _SHELL,
    "run.sbatch": _SHELL,
    "c.fish": _SHELL,
    "Dockerfile": _DOCKER,
    "docker-compose.yml": _COMPOSE,
    ".env": _ENV,
    "n.ipynb": json.dumps(_NOTEBOOK),
}
_SET = 'import os\nos.environ["CUDA_VISIBLE_DEVICES"] = {}\nimport torch\nloss.backward()\n'


def inputs(seed: int, count: int) -> Iterator[Trial]:
    """Sources from a seed."""
    return numbered(NAME, _one, seed, count)


def _one(rng: random.Random, index: int) -> Trial:
    files: dict[str, Content] = {}
    for _ in range(rng.choice((1, 1, 2, 4))):
        name = rng.choice(list(_KINDS))
        place = f"in/project/{_place(rng, name)}"
        files[place] = _content(rng, name)
    for _ in range(rng.choice((0, 0, 0, 1, 3))):
        files |= _odd(rng)
    target = "project" if rng.random() < 0.7 else next(iter(files)).removeprefix("in/")
    form = rng.choice(("full", "full", "json", "github", "html", "junit", "sarif", "markdown", "concise"))
    if rng.random() < 0.1 and any(name.endswith(".py") for name in files):
        script = next(name for name in files if name.endswith(".py")).removeprefix("in/")
        return Trial(
            f"{script} as a target",
            ("check", rng.choice((script, f"{script}:build"))),
            files,
            env={"GITHUB_ACTIONS": "true"},
        )
    argv = ("check-env", target, "--output-format", form)
    # What is judged is the files: the machine is another class.
    return Trial("sources", argv, files, env={"GITHUB_ACTIONS": "true"})


def _place(rng: random.Random, name: str) -> str:
    match rng.randrange(6):
        case 0:
            return f"{file_name(rng)[:80]}/{name}"
        case 1 if name[0] not in "Dd.":
            return f"{file_name(rng)[:80]}.{name.rpartition('.')[2]}"
        case 2:
            return "/".join(["d"] * rng.choice((5, 200))) + f"/{name}"
        case _:
            return name


def _content(rng: random.Random, name: str) -> Content:
    raw = _KINDS[name].encode()
    match rng.randrange(8):
        case 0:
            return spoiled_bytes(rng, raw)
        case 1:
            return spoiled_text(rng, raw)
        case 2 if name.endswith(".py"):
            return _hard_python(rng)
        case 3:
            return utf8(_KINDS[name].replace("CUDA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES" + text(rng), 1))
        case 4 if name.endswith(".ipynb"):
            return dumped(rng, mutated(rng, _NOTEBOOK, rng.choice((1, 3, 8))))
        case 5:
            # A value that is shown where it is found.
            return utf8(_KINDS[name].replace('""', f'"{text(rng)}"').replace("=0,1", f"={text(rng)}"))
        case _:
            return spoiled_lines(rng, raw)


def _hard_python(rng: random.Random) -> bytes:
    """Python that its parser, or whoever walks its tree, has a hard time with."""
    depth = rng.choice((50, 190, 1000, 20_000))
    choices = (
        _SET.format("(" * depth + "1" + ")" * depth),
        _SET.format("[" * depth + "]" * depth),
        _SET.format("-" * depth + "1"),
        _SET.format("not " * depth + "1"),
        _SET.format("+".join(["'a'"] * depth)),
        _SET.format("a" + ".b" * depth),
        _SET.format("a" + "()" * depth),
        _SET.format("f" + "(f" * depth + ")" * depth),
        _SET.format("lambda: " * depth + "1"),
        _SET.format("1 if x else " * depth + "1"),
        _SET.format("'" + "\\x1b[2J" + "'"),
        _SET.format("'" + "9" * 1_000_000 + "'"),
        _SET.format("9" * 5000),
        _SET.format("'\\ud800'"),
        _SET.format("f'{x!r:{y:{z}}}'"),
        _SET.format("b'\\xff'"),
        "".join("    " * i + "if x:\n" for i in range(min(depth, 99)))
        + "    " * 99
        + "pass\n"
        + _SET.format("''"),
        "if x:\n  pass\n" + "elif x:\n  pass\n" * depth + _SET.format("''"),
        "# coding: nonsense\n" + _SET.format("''"),
        "# coding: utf-7\n" + _SET.format("''"),
        "# -*- coding: utf-16 -*-\n" + _SET.format("''"),
        _SET.format("''") * 3000,
        "\x0c" * 100 + _SET.format("''"),
        "\r".join(_SET.format("''").splitlines()),
        "from torch import *\n" * 5000 + _SET.format("''"),
        "class A:\n" + " class A:\n" * 1 + "  x = 1\n" + _SET.format("''"),
        "import os\nos.environ[os.environ[os.environ['x']]] = os.environ\n" + _SET.format("os.environ"),
        "import os\nos = os\nos.environ |= {**os.environ, 'CUDA_VISIBLE_DEVICES': x}\n" + _SET.format("''"),
        "match x:\n case {**y}:\n  pass\n" + _SET.format("''"),
        "def f():\n yield from f\nasync def g():\n async for x in y: await z\n" + _SET.format("''"),
        "\u2028".join(_SET.format("''").splitlines()),
        "\ufeff\ufeff" + _SET.format("''"),
    )
    return rng.choice(choices).encode("utf-8", "surrogatepass")


def _odd(rng: random.Random) -> dict[str, Content]:
    """A file that is no plain file, has no plain name, or is too much."""
    choices: tuple[dict[str, Content], ...] = (
        {"in/project/fifo.py": Fifo()},
        {"in/project/fifo.sh": Fifo()},
        {"in/project/.env.local": Fifo()},
        {"in/project/loop.py": Link("loop.py")},
        {"in/project/up": Link("..")},
        {"in/project/around": Link("around")},
        {"in/project/a/b/c": Link("../../../project")},
        {"in/project/zero.py": Link("/dev/zero")},
        {"in/project/mem.sh": Link("/proc/self/mem")},
        {"in/project/root": Link("/")},
        {"in/project/proc": Link("/proc")},
        {"in/project/gone.py": Link("nowhere/at/all")},
        {"in/project/folder.py": Folder()},
        {"in/project/closed": Folder(0)},
        {"in/project/closed.py": Folder(0)},
        {"in/project/sparse.py": Sparse(19_000_000, b"import os\nos.environ['CUDA_VISIBLE_DEVICES']=''\n#")},
        {"in/project/sparse.ipynb": Sparse(1 << 34)},
        {"in/project/line.sh": b"export CUDA_VISIBLE_DEVICES=" + b"x" * 3_000_000},
        {"in/project/many.sh": b"export CUDA_VISIBLE_DEVICES=1\n" * 20_000},
        {"in/project/quotes.sh": b"export A='" + b'"' * 100_000 + b"\nCUDA_VISIBLE_DEVICES=1\n"},
        {"in/project/heredoc.sh": b"cat <<A\n" * 3000 + b"CUDA_VISIBLE_DEVICES=1\n"},
        {"in/project/dollar.sh": b"export CUDA_VISIBLE_DEVICES=" + b"$(" * 50_000 + b")" * 50_000 + b"\n"},
        {"in/project/brace.sh": b"export CUDA_VISIBLE_DEVICES=" + b"${a:-" * 50_000 + b"\n"},
        {"in/project/spaces.sh": b" " * 200_000 + b"CUDA_VISIBLE_DEVICES" + b" " * 200_000 + b"=1\n"},
        {"in/project/backslash.sh": b"CUDA_VISIBLE_DEVICES=1 \\\n" * 20_000},
        {"in/project/compose.yaml": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\nCUDA_VISIBLE_DEVICES: *c\n"},
        {"in/project/docker-compose.yaml": b"environment:\n" + b"  - CUDA_VISIBLE_DEVICES=1\n" * 5000},
        {"in/project/docker-compose.yml": b"- " * 50_000 + b"CUDA_VISIBLE_DEVICES=1\n"},
        {f"in/project/{file_name(rng)[:100]}": b"CUDA_VISIBLE_DEVICES=1\n"},
        {"in/project/equals.env": b"CUDA_VISIBLE_DEVICES" + b"=" * 100_000 + b"\n"},
        {f"in/project/{i}.py": b"import os\nos.environ['CUDA_VISIBLE_DEVICES'] = ''\n" for i in range(300)},
    )
    return rng.choice(choices)
