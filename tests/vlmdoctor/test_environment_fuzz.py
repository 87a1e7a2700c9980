"""Whatever variables, snapshots, reports and files hold: an answer or one sentence, never a traceback."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from vlmdoctor.engine import Gatherer, judge
from vlmdoctor.errors import UserError
from vlmdoctor.evidence.demands import parse
from vlmdoctor.evidence.environment import Environment
from vlmdoctor.probes.machine.difference import differences
from vlmdoctor.probes.machine.nvml import understood
from vlmdoctor.probes.machine.redaction import redacted
from vlmdoctor.probes.machine.saved import as_json, understand
from vlmdoctor.probes.machine.snapshot import snapshot
from vlmdoctor.probes.source.scan import scan
from vlmdoctor.reporters.machine import device_sections, static_sections
from vlmdoctor.reporters.machine_verdict import verdict_of
from vlmdoctor.rulebook import rules_in
from vlmdoctor.rules.env.requirement_unmet import _surely_met

MACHINES = Path(__file__).parent / "machines"
TEXTS = {path.name: path.read_text() for path in sorted(MACHINES.iterdir())}
RULES = [rule for rule in rules_in("env") if "demands" not in rule.requirements]
few = settings(deadline=None, max_examples=60, derandomize=True, suppress_health_check=list(HealthCheck))


def judged(environment: Environment) -> None:
    """Everything that is done with a snapshot is done."""
    report = judge(RULES, Gatherer(None, [environment]), command="test", target="")
    assert report.crashed == ()
    json.dumps(report.to_dict(), allow_nan=False)
    for section in (*static_sections(environment), *device_sections(environment)):
        section.mark(report.findings)
    verdict = verdict_of(environment, report.findings)
    assert verdict.text
    assert not verdict.line.startswith("✓") or report.verdict == "pass"
    differences(environment, understand(as_json(environment), "x"))


names = st.sampled_from(
    [
        *("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
        *(
            "PYTORCH_CUDA_ALLOC_CONF",
            "PYTORCH_ALLOC_CONF",
            "WORLD_SIZE",
            "RANK",
            "USE_TORCH",
            "LD_LIBRARY_PATH",
        ),
        *(
            "CUDA_LAUNCH_BLOCKING",
            "OMP_NUM_THREADS",
            "HF_HOME",
            "TMPDIR",
            "CUDA_HOME",
            "NCCL_IB-DISABLE",
            "HOME",
        ),
        *(
            "HF_HUB_OFFLINE",
            "KMP_DUPLICATE_LIB_OK",
            "ACCELERATE_USE_CPU",
            "XDG_CACHE_HOME",
            "CUDA_VISIBEL_DEVICES",
        ),
    ]
)
values = st.one_of(st.text(max_size=20), st.text(alphabet="0123456789,:=-+[]GPU~/ Truefals", max_size=20))
environs = st.dictionaries(names, values.filter(lambda value: "\0" not in value), max_size=5)


@few
@given(environs)
def test_any_variables(environ: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        judged(snapshot(Path(folder), environ, [], Path(folder)))


@few
@given(environs, st.sampled_from(sorted(name for name in TEXTS if name.endswith(".json"))))
def test_any_variables_on_known_machines(environ: dict[str, str], name: str) -> None:
    made = {**json.loads(TEXTS[name]), "variables": environ}
    judged(understand(json.dumps(made), name))


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A known report with pieces of it cut out, doubled, or replaced."""
    text = TEXTS[draw(st.sampled_from(sorted(TEXTS)))]
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.integers(0, 60)))
        text = text[:start] + draw(st.one_of(st.text(max_size=8), st.just(text[start:end] * 2))) + text[end:]
    return text


@few
@given(st.one_of(damaged(), st.text(max_size=60), st.text(max_size=60).map("PyTorch version: ".__add__)))
def test_any_report(text: str) -> None:
    try:
        environment = understand(text, "the report")
    except UserError as error:
        assert str(error) and "\n" not in str(error)
    else:
        judged(environment)


trees = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    ["gpus", "torch", "host", "driver", "nvml", "pci", "variables", "packages", "requires"]
)


@few
@given(st.dictionaries(fields, trees, max_size=4))
def test_any_snapshot(made: dict[str, object]) -> None:
    text = json.dumps({"vlmdoctor_snapshot": 1, **made})
    try:
        environment = understand(text, "the snapshot")
    except UserError:
        return
    judged(environment)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A known snapshot in which one value, wherever it is, is another."""
    made = json.loads(
        TEXTS[draw(st.sampled_from([name for name in sorted(TEXTS) if name.endswith(".json")]))]
    )
    place, key = made, draw(st.sampled_from(sorted(made)))
    while isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 3)):
        place = place[key]
        key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = draw(st.one_of(trees, st.text(max_size=6), st.integers(-(10**20), 10**20), st.just(10**400)))
    return json.dumps(made)


@settings(few, max_examples=300)
@given(mutated())
def test_any_snapshot_that_is_nearly_right(text: str) -> None:
    try:
        environment = understand(text, "the snapshot")
    except UserError as error:
        assert "\n" not in str(error)
        return
    judged(environment)


@few
@given(trees)
def test_any_answer_of_the_driver(said: object) -> None:
    nvml, gpus, _ = understood(said)
    assert nvml.state and isinstance(gpus, tuple)


@few
@given(st.lists(st.text(max_size=12), max_size=3))
def test_any_requirement(texts: list[str]) -> None:
    try:
        assert parse(texts).demands
    except UserError as error:
        assert "--require" in str(error)


cells = st.one_of(
    trees,
    st.fixed_dictionaries(
        {"cell_type": st.just("code"), "source": st.one_of(st.text(), st.lists(st.text()), trees)}
    ),
)
lines = st.sampled_from(
    [
        *(
            'os.environ["CUDA_VISIBLE_DEVICES"] = ""',
            "import torch",
            "torch.cuda.is_available()",
            "model.cpu()",
        ),
        *(
            "%env HF_HOME=/x",
            "%%bash",
            "if x:",
            "  def f():",
            "loss.backward()",
            "export OMP_NUM_THREADS=1 \\",
        ),
        *(
            "environment:",
            "  - CUDA_VISIBLE_DEVICES='0,1",
            "ENV NCCL_P2P_DISABLE",
            "#SBATCH --export=A=1,B",
            "fi",
        ),
        *(
            "deepspeed --num_gpus 2 train.py",
            'device = "cpu"',
            "Accelerator(cpu=True)",
            "(" * 50,
            "\x0c",
            "\\",
        ),
    ]
)


@few
@given(st.lists(cells, max_size=3), st.lists(st.one_of(lines, st.text(max_size=12)), max_size=8))
def test_any_sources(made: list[object], written: list[str]) -> None:
    text = "\n".join(written)
    notebook = {"cells": [*made, {"cell_type": "code", "source": text}]}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.py", "b.sh", "Dockerfile", "docker-compose.yml", ".env"):
            (Path(folder) / name).write_text(text, encoding="utf-8", errors="replace")
        (Path(folder) / "c.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
        source = scan([Path(folder)])
    assert source.files == 6
    report = judge(rules_in("src"), Gatherer(None, [source]), command="test", target="")
    assert report.crashed == ()


releases = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(lambda parts: ".".join(map(str, parts)))
builds = st.sampled_from(["", "+cu130", "+cpu", "rc1", ".dev0", ".post1", "a0"])
signs = st.sampled_from(["<", ">=", "==", "!=", ">", "<=", "~="])


@few
@given(st.lists(st.tuples(signs, releases), max_size=3), releases, builds)
def test_the_short_way_agrees_with_packaging(
    clauses: list[tuple[str, str]], release: str, build: str
) -> None:
    try:
        requirement = Requirement("torch" + ",".join(map("".join, clauses)))
    except InvalidRequirement:
        return
    if _surely_met(str(requirement), {"torch": release + build}):
        assert requirement.specifier.contains(Version(release + build), prereleases=True)


@few
@given(st.text(max_size=80), environs)
def test_any_text_is_redacted(text: str, environ: dict[str, str]) -> None:
    assert isinstance(redacted(text, {**environ, "USER": "anna", "HOSTNAME": "h"}), str)
