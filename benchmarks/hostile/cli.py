"""Command lines: every command with options, values, variables and streams that nobody meant."""

from __future__ import annotations

import random
from collections.abc import Iterator

from benchmarks.hostile.harness.bases import RECORDED
from benchmarks.hostile.harness.texts import argument, as_argument, as_file_name, file_name
from benchmarks.hostile.harness.trial import (
    PLAIN,
    STREAMS,
    Base,
    Content,
    Fifo,
    Folder,
    Link,
    Sparse,
    Trial,
    numbered,
)

NAME = "cli"
WEIGHT = 1.5

_SHARED = (
    *("--select", "--extend-select", "--ignore", "--output-format", "--output-file", "--fail-on"),
    *("--exit-zero", "--quiet", "-q", "--verbose", "-v"),
)
_OPTIONS: dict[str, tuple[str, ...]] = {
    "check": (
        *("--depth", "--device", "--budget", "--trust-remote-code", "--gpu", "--batch-size", "--images"),
        *("--seq-len", "--precision", "--optimizer", "--gradient-checkpointing", "--lora", "--freeze"),
        *("--shard", "--world-size", *_SHARED),
    ),
    "check-env": ("--require", "--save", "--from", "--diff", "--paste", "--timeout", *_SHARED),
    "look": ("--samples", "--output-format", "--output-file", "--trust-remote-code", "-v"),
    "init": ("--force", "--dry-run", "--trust-remote-code", "-v"),
    "report": ("--draw", "--no-draw", "--require-accuracy", *_SHARED),
    "rule": ("--output-format",),
    "rules": ("--output-format",),
    "train": (
        *("--preset", "--set", "--init-from", "--tokenizer", "--vision-from", "--stage", "--trainable"),
        *("--lora-rank", "--data", "--test-data", "--images", "--max-length", "--steps", "--epochs"),
        *("--batch-size", "--accumulate", "--lr", "--precision", "--device", "--threads", "--out"),
        *("--resume", "--seed", "--workers", "--eval-every", "--require-accuracy", *_SHARED),
    ),
    "": ("--version", "--help", "--install-completion", "--show-completion"),
}
_FLAGS = {
    *("--exit-zero", "--quiet", "-q", "--verbose", "-v", "--trust-remote-code", "--gradient-checkpointing"),
    *("--paste", "--force", "--dry-run", "--draw", "--no-draw", "--resume", "--version", "--help"),
}
_TARGETS = (
    *(
        "minivlm",
        "minivlm:",
        "minivlm:tiny",
        "minivlm:nothing",
        "minivlm:tiny:tiny",
        ".",
        "..",
        "/",
        "~",
        "~nobody",
    ),
    *(
        "",
        " ",
        ":",
        "::",
        ":build",
        "os:",
        "os:system",
        "os:getpid",
        "os:path.join",
        "sys:exit",
        "builtins:quit",
    ),
    *("builtins:input", "antigravity:x", "this:x", "script.py", "script.py:build"),
    *(
        "script.py:",
        "script.py:missing",
        "raises.py:build",
        "exits.py:build",
        "prints.py:build",
        "loops:build",
    ),
    *("folder", "folder.json", "link", "config.json", "empty", "empty.json", "fifo.json", "fifo.py:build"),
    *(
        "loop",
        "unreadable",
        "run",
        "nothing.json",
        "a.b.c:d",
        "..:x",
        "script:build",
        "/dev/null",
        "/dev/zero",
    ),
    *(
        "/dev/stdin",
        "/proc/self/mem",
        "-",
        "--",
        "script.py:build.__globals__",
        "script.py:__builtins__.exit",
    ),
    *("str_raises.py:build", "base_exception.py:build", "recursion.py:build", "hostile_text.py:build"),
    *("no_text.py:build", "null.py:build", "zeros.py:build", "no_text.json"),
)
_WORDS = (
    *(
        "json",
        "full",
        "html",
        "sarif",
        "junit",
        "markdown",
        "github",
        "concise",
        "yaml",
        "JSON",
        "error",
        "never",
    ),
    *(
        "forward",
        "shapes",
        "static",
        "steps",
        "cpu",
        "cuda",
        "cuda:99",
        "meta",
        "h100",
        "4090",
        "bf16",
        "amp-fp16",
    ),
    *(
        "adamw",
        "sgd",
        "vision",
        "all",
        "ALL",
        "GRAD",
        "ENV101",
        "ddp",
        "fsdp2",
        "0",
        "1",
        "-1",
        "3",
        "1e9",
        "nan",
    ),
    *(
        "inf",
        "1e-400",
        "99999999999999999999",
        "gpu",
        "2-gpus",
        "vram=40GB",
        "disk=-1",
        "cuda=x",
        "vram=1e999GB",
    ),
    *(
        "../out/report",
        "../out",
        "../out/none/report",
        "../out/" + "a" * 300,
        "/dev/full",
        "/dev/null",
        "report",
    ),
    *(
        "/proc/version",
        "fifo",
        "link",
        "unreadable",
        "tiny",
        "digits",
        "emoji",
        "data.jsonl",
        "..",
        "run",
        "loop",
    ),
)
_VARIABLES: dict[str, tuple[str, ...]] = {
    "RANK": ("abc", "-1", "", " ", "1", "9" * 30, "1.5", "0x0", "٣"),
    "WORLD_SIZE": ("abc", "-1", "0", "", "4", "9" * 5000),
    "LOCAL_RANK": ("abc", "-1", "99"),
    "MASTER_PORT": ("abc", "99999999"),
    "COLUMNS": ("-1", "0", "1", "abc", "9" * 20, ""),
    "LINES": ("-1", "0", "abc"),
    "NO_COLOR": ("", "1", "\x1b"),
    "FORCE_COLOR": ("", "1", "3"),
    "TERM": ("", "dumb", "\x1b[31m", "xterm-256color", "x" * 5000),
    "GITHUB_ACTIONS": ("true",),
    "CI": ("true",),
    "CUDA_VISIBLE_DEVICES": ("", "-1", "a,b", "9" * 5000, "GPU-", ",,,", "\x1b[2J", "0\n::error::hostile"),
    "OMP_NUM_THREADS": ("abc", "-1", "0", "9" * 30),
    "HOME": ("", "/", "nowhere", "/dev/null", "x" * 5000),
    "TMPDIR": ("/nowhere", "/dev/null", "", "x" * 5000),
    "PATH": ("", "nowhere"),
    "HF_HOME": ("/dev/null", "\x1b[31m"),
    "PYTORCH_CUDA_ALLOC_CONF": ("max_split_size_mb", "a:b:c", ":", "\x1b[31m", "expandable_segments:maybe"),
    "LANG": ("C", "POSIX", "nonsense", ""),
    "VLMDOCTOR_DEBUG": ("1",),
    "_TYPER_COMPLETE": ("1",),
    "_VLMDOCTOR_COMPLETE": ("complete_bash", "bash_source", "nonsense"),
    "VLMDOCTOR_COMPLETE": ("complete_bash",),
    "PYTHONIOENCODING": ("ascii", "nonsense"),
    "SLURM_PROCID": ("abc", "-1"),
    "MPLBACKEND": ("nonsense", "Agg"),
}
_BUILD = "import torch\ndef build():\n    {}\n    return torch.nn.Linear(2, 2)\n"
_SCRIPTS = {
    "script.py": _BUILD.format("pass"),
    "raises.py": _BUILD.format("raise ValueError('\\x1b[2J\\n::error::hostile')"),
    "exits.py": _BUILD.format("raise SystemExit('\\x1b[2Jbye')"),
    "prints.py": _BUILD.format("print('\\x1b[2J' * 3); import sys; sys.stdout = None"),
    "loops.py": "import loops\nfrom loops import build\n",
    "str_raises.py": "class E(Exception):\n    def __str__(self): raise ValueError('no')\n"
    + _BUILD.format("raise E()"),
    "base_exception.py": "class E(BaseException): pass\n" + _BUILD.format("raise E('a')"),
    "recursion.py": _BUILD.format("return build()"),
    "hostile_text.py": "class N(__import__('torch').nn.Module):\n    def forward(self): pass\n"
    + "N.__name__ = N.__qualname__ = '\\x1b[2J<script>hostile()</script>'\n"
    + _BUILD.format("return N()"),
    "data.jsonl": '{"conversations": []}\n[]\nnull\n{"a":\n',
}
_PYPROJECTS: tuple[bytes, ...] = (
    b"[tool.vlmdoctor]\nselect = 5\n",
    b"[tool.vlmdoctor]\nnothing = 1\n",
    b"[tool]\nvlmdoctor = []\n",
    b"tool = 5\n",
    b"[tool.vlmdoctor]\nx = " + b"1" * 5000 + b"\n",
    b"[tool.vlmdoctor]\nx = " + b"[" * 100_000 + b"\n",
    b"\xff\xfe[tool.vlmdoctor]\n",
    b"[tool.vlmdoctor\n",
    b'[tool.vlmdoctor]\noutput-format = "\\u001b[2J"\n',
    b'[tool.vlmdoctor]\nselect = ["\\u001b]0;x\\u0007"]\n',
    b'[tool.vlmdoctor.contract]\nlearns = "\\u202e"\n',
    b"[tool.vlmdoctor.contract]\n" + b"a." * 20_000 + b"b = 1\n",
    b'[tool.vlmdoctor]\nfail-on = "nan"\n[tool.vlmdoctor]\n',
    b"\x00",
)


def inputs(seed: int, count: int) -> Iterator[Trial]:
    """Command lines from a seed."""
    return numbered(NAME, _one, seed, count)


def _one(rng: random.Random, index: int) -> Trial:
    command = rng.choice(list(_OPTIONS))
    argv = [command] if command else []
    if rng.random() < 0.85:
        argv += _positional(rng, command)
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3, 6))):
        argv += _option(rng, command)
    if command == "train":
        # However it is started, it is to end soon.
        argv += ["--max-steps", "1", "--batch-size", "2", "--eval-samples", "2", "--no-preflight"]
        argv += ["--out", f"../out/{file_name(rng) if rng.random() < 0.3 else 'run'}"]
    if rng.random() < 0.1:
        rng.shuffle(argv)
    if rng.random() < 0.03:
        argv += [argument(rng)] * rng.choice((1, 50, 2000))
    files = _files(rng, argv)
    return Trial(
        what=f"the command line of {command or 'no command'}",
        argv=tuple(argv),
        files=files,
        env=_env(rng),
        streams=rng.choice(STREAMS) if rng.random() < 0.2 else PLAIN,
        encoding=rng.choice(("ascii", "latin-1")) if rng.random() < 0.08 else "utf-8",
        may_change=(*_MAY_CHANGE, *(("in/pyproject.toml",) if command == "init" else ())),
        fresh=rng.random() < 0.02,
    )


_MAY_CHANGE = ("out/*", "home/*")


def _positional(rng: random.Random, command: str) -> list[str]:
    if command in ("check", "look", "init", "report", "check-env", "train"):
        several = rng.choice((1, 1, 2, 5)) if command == "check-env" else 1
        return [rng.choice(_TARGETS) if rng.random() < 0.75 else argument(rng) for _ in range(several)]
    return [rng.choice(("no-gradient", "GRAD201", "grad", "*", argument(rng), argument(rng)))]


def _option(rng: random.Random, command: str) -> list[str]:
    pool = _OPTIONS[command] if rng.random() < 0.9 else _OPTIONS[rng.choice(list(_OPTIONS))]
    name = rng.choice(pool)
    if name == "--trust-remote-code":
        return []  # what it allows is no fault
    if name in _FLAGS and rng.random() < 0.95:
        return [name]
    value = rng.choice(_WORDS) if rng.random() < 0.6 else argument(rng)
    if name in ("--output-file", "--save", "--out"):
        value = rng.choice(
            (
                "../out/report",
                "../out/none/report",
                "../out",
                "/dev/full",
                "/dev/null",
                "../out/" + file_name(rng),
            )
        )
    if name == "--timeout":
        value = rng.choice(("0.1", "0", "-1", "nan", "inf", "1e400", value))
    if name == "--samples":
        value = rng.choice(("1", "0", "64", "65", value))
    if name == "--diff":
        return [name, value, rng.choice(_TARGETS)]
    match rng.randrange(8):
        case 0:
            return [f"{name}={value}"]
        case 1:
            return [name]
        case 2:
            return [name, value, name, value]
        case _:
            return [name, value]


def _env(rng: random.Random) -> dict[str, str | None]:
    if rng.random() < 0.4:
        return {}
    names = rng.sample(list(_VARIABLES), rng.choice((1, 1, 2, 4)))
    env: dict[str, str | None] = {name: rng.choice(_VARIABLES[name]) for name in names}
    if rng.random() < 0.3:
        env[rng.choice(names)] = argument(rng)
    if rng.random() < 0.05:
        env["HOME"] = None
    return env


def _files(rng: random.Random, argv: list[str]) -> dict[str, Content]:
    """What the targets name; made only where an argument names it."""
    files: dict[str, Content] = {}
    stem = {a.partition(":")[0] for a in argv} | {f"{a.partition(':')[0]}.py" for a in argv}
    for name, text in _SCRIPTS.items():
        if name in stem:
            files[f"in/{name}"] = text.encode()
    made: dict[str, Content] = {
        "folder": Folder(),
        "folder.json": Folder(),
        "link": Link("nowhere"),
        "config.json": b'{"model_type": "llama"}',
        "empty": b"",
        "empty.json": b"",
        "fifo": Fifo(),
        "fifo.json": Fifo(),
        "fifo.py": Fifo(),
        "loop": Link("loop"),
        "unreadable": Folder(0),
        "no_text.py": b"\xff\xfe\x00build",
        "null.py": b"def build():\n\0",
        "zeros.py": Sparse(30_000_000),
        "no_text.json": b"\xff\xfe\x00{}",
    }
    files |= {f"in/{name}": content for name, content in made.items() if name in stem}
    if "run" in stem and "report" in argv:
        files["out/run"] = Base(RECORDED)
        files["in/run"] = Link("../out/run")
    if rng.random() < 0.15:
        files["in/pyproject.toml"] = rng.choice(_PYPROJECTS)
    if rng.random() < 0.05:
        files[f"in/{as_file_name(as_argument(file_name(rng)))}"] = b"print('hello')\n"
    return files
