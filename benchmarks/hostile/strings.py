"""Hostile texts by all output formats and by the places from which text comes into a report."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator

from benchmarks.hostile.harness.bases import MODEL, RECORDED, TEXT_MODEL, configurations
from benchmarks.hostile.harness.texts import TEXTS, as_argument, as_file_name, utf8
from benchmarks.hostile.harness.trial import Base, Content, Edit, Trial, numbered

NAME = "strings"
WEIGHT = 2

FORMATS = ("full", "concise", "json", "github", "junit", "sarif", "markdown", "html")
_IN_CI: dict[str, str | None] = {"GITHUB_ACTIONS": "true"}
Place = Callable[[str, str], Trial]


def inputs(seed: int, count: int) -> Iterator[Trial]:
    """Places, texts and formats in an order that depends on the seed; after all of them, once more."""
    cases = list(itertools.product(_PLACES, TEXTS, FORMATS))
    random.Random(f"{seed}/{NAME}").shuffle(cases)

    def one(rng: random.Random, index: int) -> Trial:
        place, text, form = cases[index % len(cases)]
        return place(text, form)

    return numbered(NAME, one, seed, count)


def _trial(what: str, argv: list[str], files: dict[str, Content], form: str, **more: object) -> Trial:
    env = {**_IN_CI, **more.pop("env", {})}  # type: ignore[dict-item]
    return Trial(what, (*argv, "--output-format", form), files, env, **more)  # type: ignore[arg-type]


def _tensor_name(text: str, form: str) -> Trial:
    files: dict[str, Content] = {
        "in/model": Base(MODEL),
        "in/model/model.safetensors": Edit("named:" + text, 0),
    }
    return _trial("a tensor's name", ["check", "model", "--depth", "static"], files, form)


_MODEL = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(16, 8), nn.Linear(8, 16)
        {init}
    def forward(self, input_ids, labels):
        {forward}
        logits = self.head(self.embed(input_ids))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {{"loss": loss, "logits": logits}}
{after}
def build():
    {build}
    torch.manual_seed(0)
    ids = torch.arange(8).reshape(2, 4)
    return Net(), {{"input_ids": ids, "labels": ids, **{batch}}}
"""


def _python(
    text: str, init: str = "", forward: str = "", after: str = "", build: str = "", batch: str = "{}"
) -> dict[str, Content]:
    body = _MODEL.format(
        init=init or "pass", forward=forward or "pass", after=after, build=build or "pass", batch=batch
    )
    return {"in/script.py": utf8(f"import torch\nfrom torch import nn\nT = {text!a}\n{body}")}


_FORWARD = ["check", "script.py:build", "--depth", "forward", "--budget", "3"]


def _module_name(text: str, form: str) -> Trial:
    files = _python(text, init="self._modules[T or 'x'] = nn.Linear(3, 3)")
    return _trial("a module's name", _FORWARD, files, form)


def _class_name(text: str, form: str) -> Trial:
    files = _python(text, after="Net.__name__ = Net.__qualname__ = T.replace(chr(0), '')")
    return _trial("a class's name", _FORWARD, files, form)


def _raised_in_forward(text: str, form: str) -> Trial:
    return _trial("an exception in forward", _FORWARD, _python(text, forward="raise ValueError(T)"), form)


def _raised_in_build(text: str, form: str) -> Trial:
    return _trial("an exception in build", _FORWARD, _python(text, build="raise RuntimeError(T)"), form)


def _exception_type(text: str, form: str) -> Trial:
    files = _python(text, forward="raise type(T.replace(chr(0), ''), (Exception,), {})('a')")
    return _trial("an exception's type", _FORWARD, files, form)


def _printed(text: str, form: str) -> Trial:
    """What the user's code prints is its own affair on standard error; the report is not."""
    files = _python(text, after="import warnings\nwarnings.warn(ascii(T))")
    return _trial("a warning", _FORWARD, files, form)


def _batch_key(text: str, form: str) -> Trial:
    return _trial("a key of the batch", _FORWARD, _python(text, batch="{T: ids}"), form)


def _parameter_name(text: str, form: str) -> Trial:
    files = _python(text, init="self._parameters[T or 'x'] = nn.Parameter(torch.full((3,), float('nan')))")
    return _trial("a parameter's name", _FORWARD, files, form)


def _optimizer_name(text: str, form: str) -> Trial:
    body = (
        "def build():\n    m = nn.Linear(2, 2)\n"
        "    o = torch.optim.SGD([{'params': m.parameters(), 'name': T}], lr=0.0)\n"
        "    return m, torch.ones(1, 2), o\n"
    )
    files: dict[str, Content] = {
        "in/script.py": utf8(f"import torch\nfrom torch import nn\nT = {text!a}\n{body}")
    }
    return _trial("a group's name", _FORWARD, files, form)


def _exit_text(text: str, form: str) -> Trial:
    return _trial("a text to exit with", _FORWARD, _python(text, build="raise SystemExit(T)"), form)


def _script_name(text: str, form: str) -> Trial:
    name = as_file_name(as_argument(text))
    code = utf8("def build():\n    raise ValueError('x')\n")
    return _trial("a script's name", ["check", f"{name}.py:build"], {f"in/{name}.py": code}, form)


def _missing_target(text: str, form: str) -> Trial:
    return _trial("a target that is not there", ["check", as_argument(text)], {}, form)


def _select(text: str, form: str) -> Trial:
    return _trial("a rule's name", ["check-env", "--from", "x", "--select", as_argument(text)], {}, form)


def _config_value(text: str, form: str) -> Trial:
    config = {**configurations()["llama"], "architectures": [text], "hidden_act": text}
    files: dict[str, Content] = {"in/config.json": json.dumps(config).encode()}
    return _trial("values of a configuration", ["check", "config.json"], files, form)


def _model_type(text: str, form: str) -> Trial:
    config = {**configurations()["llava"], "model_type": text}
    files: dict[str, Content] = {"in/config.json": json.dumps(config).encode()}
    return _trial("a model's type", ["check", "config.json"], files, form)


def _config_key(text: str, form: str) -> Trial:
    config = {**configurations()["qwen2"], text: text, "rope_parameters": {"rope_type": text}}
    files: dict[str, Content] = {"in/model/config.json": json.dumps(config).encode()}
    return _trial("keys of a configuration", ["check", "model", "--depth", "static"], files, form)


def _folder_name(text: str, form: str) -> Trial:
    name = as_file_name(as_argument(text))
    files: dict[str, Content] = {f"in/{name}/config.json": b'{"model_type": "nothing"}'}
    return _trial("a folder's name", ["check", name], files, form)


def _variable(text: str, form: str) -> Trial:
    value = as_argument(text)
    env = dict.fromkeys(
        ("CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "OMP_NUM_THREADS", "HF_HOME"), value
    )
    return _trial("variables", ["check-env"], {}, form, env=env)


def _snapshot_value(text: str, form: str) -> Trial:
    snapshot = {
        "vlmdoctor_snapshot": 1,
        "python": text,
        "platform": text,
        "origin": text,
        "variables": {text: text, "CUDA_VISIBLE_DEVICES": text, "PYTORCH_CUDA_ALLOC_CONF": text},
        "packages": {text: text, "torch": text, "transformers": text, "numpy": "2.0"},
        "torch_cuda": text,
    }
    files: dict[str, Content] = {"in/s": json.dumps(snapshot).encode()}
    return _trial("values of a snapshot", ["check-env", "--from", "s"], files, form)


def _pasted_value(text: str, form: str) -> Trial:
    report = (
        f"PyTorch version: 2.4.0+cu121{text}\nIs debug build: False\nCUDA used to build PyTorch: 12.1\n"
        f"OS: {text}\nPython version: 3.11 {text}\nIs CUDA available: True\n"
        f"GPU models and configuration: GPU 0: {text}\n"
        f"Nvidia driver version: 535.{text}\n\nVersions of relevant libraries:\n"
        f"[pip3] numpy=={text}\n[pip3] torch==2.4.0\n"
    )
    return _trial("values of a report", ["check-env", "--from", "s"], {"in/s": utf8(report)}, form)


def _source_value(text: str, form: str) -> Trial:
    code = f"import torch\nimport os\nos.environ['CUDA_VISIBLE_DEVICES'] = {text!a}\nloss.backward()\n"
    shell = "export CUDA_VISIBLE_DEVICES='" + text.replace("'", "").replace("\0", "") + "'\npython train.py\n"
    files: dict[str, Content] = {"in/p/a.py": code.encode(), "in/p/b.sh": utf8(shell)}
    return _trial("values in sources", ["check-env", "p"], files, form)


def _source_raw(text: str, form: str) -> Trial:
    code = f"import os, torch\nos.environ['CUDA_VISIBLE_DEVICES'] = ''  # {text}\nloss.backward()\n"
    return _trial("a comment in a source", ["check-env", "p"], {"in/p/a.py": utf8(code)}, form)


def _source_name(text: str, form: str) -> Trial:
    code = b"import os, torch\nos.environ['CUDA_VISIBLE_DEVICES'] = ''\nloss.backward()\n"
    name = as_file_name(as_argument(text))
    return _trial(
        "a source's name",
        ["check-env", "p"],
        {f"in/p/{name}.py": code, f"in/p/{name}/.env": b"CUDA_VISIBLE_DEVICES=\n"},
        form,
    )


def _run_value(text: str, form: str) -> Trial:
    finding = {
        "event": "finding",
        "step": 3,
        "rule": text,
        "code": text,
        "severity": "error",
        "message": text,
        "at": text,
        "cause": text,
        "fix": text,
    }
    nonfinite = {"event": "nonfinite", "step": 4, "what": text, "where": text, "module": text, "kind": text}
    rows = "\n".join(json.dumps(row) for row in (finding, nonfinite, {"event": text, "step": 1}))
    files: dict[str, Content] = {
        "out/run": Base(RECORDED),
        "out/run/run.jsonl": Edit("append:" + rows, 0),
        "out/run/run.json": Edit("texts:" + text, 0),
        "out/run/summary.json": Edit("texts:" + text, 0),
        "out/run/tracks.json": Edit("texts:" + text, 0),
    }
    drawn = ("out/run/*.png", "out/run/report.html", "out/run/summary.json", "home/*")
    return _trial("values of a run", ["report", "../out/run", "--no-draw"], files, form, may_change=drawn)


def _run_name(text: str, form: str) -> Trial:
    name = as_file_name(as_argument(text))
    files: dict[str, Content] = {f"out/{name}": Base(RECORDED)}
    return _trial(
        "a run's name", ["report", f"../out/{name}", "--no-draw"], files, form, may_change=("home/*",)
    )


def _template_text(text: str, form: str) -> Trial:
    files: dict[str, Content] = {
        "in/model": Base(MODEL),
        "in/model/chat_template.jinja": utf8("{{ raise_exception(" + ascii(text) + ") }}"),
    }
    return _trial("a template's exception", ["check", "model", "--depth", "static"], files, form)


def _looked_at(text: str, form: str) -> Trial:
    shown = {"html": "html", "json": "json"}.get(form, "full")
    files: dict[str, Content] = {
        "in/model": Base(TEXT_MODEL),
        "in/model/chat_template.jinja": utf8(
            "{% for m in messages %}" + text.replace("{", "") + "{{ m.content }}{% endfor %}"
        ),
    }
    return _trial("a template's text", ["look", "model"], files, shown)


def _rule_named(text: str, form: str) -> Trial:
    return _trial("a rule asked for", ["rule", as_argument(text)], {}, "json" if form == "json" else "full")


def _settings(text: str, form: str) -> Trial:
    plain = json.dumps(text.encode("utf-8", "replace").decode())
    files: dict[str, Content] = {
        "in/pyproject.toml": f"[tool.vlmdoctor]\nselect = [{plain}]\nfail-on = {plain}\n".encode()
    }
    return _trial("values of pyproject.toml", ["check-env", "--from", "x"], files, form)


_PLACES: tuple[Place, ...] = (
    *(
        _tensor_name,
        _module_name,
        _class_name,
        _raised_in_forward,
        _raised_in_build,
        _exception_type,
        _printed,
    ),
    *(_batch_key, _parameter_name, _optimizer_name, _exit_text, _script_name, _missing_target, _select),
    *(_config_value, _model_type, _config_key, _folder_name, _variable, _snapshot_value, _pasted_value),
    *(_source_value, _source_raw, _source_name, _run_value, _run_name, _template_text, _looked_at),
    *(_rule_named, _settings),
)
