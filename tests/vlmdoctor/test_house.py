"""The layers of the package: what may import what, no import circle, one probe for each kind of evidence.

Read off the syntax trees. Imports within functions count, for they hide a circle and do not cut it. Imports
under `if TYPE_CHECKING:` count too: two files of which each is read with the other open are one.
"""

import ast
import dataclasses
import importlib
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vlmdoctor
import vlmdoctor.evidence
from vlmdoctor.engine import DEPTHS, probe_of
from vlmdoctor.errors import Unavailable
from vlmdoctor.rulebook import all_rules

ROOT = Path(vlmdoctor.__file__).parent
# A report shows itself, in a notebook and when it is printed, and its reporters import reports.
ALLOWED = {
    ("vlmdoctor.report", "vlmdoctor.reporters.html"),
    ("vlmdoctor.report", "vlmdoctor.reporters.card"),
    ("vlmdoctor.report", "vlmdoctor.reporters.full"),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports_of(name: str) -> set[str]:
    """Everything that a file imports, at any depth: modules, and those that a name is taken from."""
    found = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (whole & set(FILES)) or {node.module or ""}
    return found - {name}


IMPORTS = {name: imports_of(name) for name in FILES}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one file (Tarjan)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            at = stack.index(name)
            if len(stack) - at > 1:
                found.append(sorted(stack[at:]))
            del stack[at:]

    for name in graph:
        if name not in number:
            visit(name)
    return found


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_import_circle() -> None:
    graph = {
        name: {other for other in found if other in FILES and (name, other) not in ALLOWED}
        for name, found in IMPORTS.items()
    }
    assert circles(graph) == []


def within(name: str, *allowed: str) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


@pytest.mark.parametrize(
    ("folder", "allowed"),
    [
        ("vlmdoctor.evidence", ("vlmdoctor.evidence", "vlmdoctor.errors", "vlmdoctor.knowledge")),
        ("vlmdoctor.knowledge", ("vlmdoctor.knowledge", "vlmdoctor.errors")),
    ],
)
def test_a_floor_stands_on_those_below(folder: str, allowed: tuple[str, ...]) -> None:
    files = [name for name in FILES if within(name, folder)]
    assert files
    for name in files:
        for other in IMPORTS[name]:
            if within(other, "vlmdoctor"):
                assert within(other, *allowed), f"{name} imports {other}"
            else:
                assert other.partition(".")[0] in sys.stdlib_module_names, f"{name} imports {other}"


def test_rules_import_nothing_that_measures() -> None:
    files = [name for name in FILES if within(name, "vlmdoctor.rules")]
    assert files
    above = ("probes", "watching", "dryrun", "targets", "sandbox", "proof", "repairs", "reporters", "cli")
    for name in files:
        for other in IMPORTS[name]:
            assert not within(other, *(f"vlmdoctor.{one}" for one in above)), f"{name} imports {other}"


def test_the_sandbox_imports_nothing_of_those_that_run_in_it() -> None:
    files = [name for name in FILES if within(name, "vlmdoctor.sandbox")]
    assert files
    above = ("probes", "watching", "dryrun", "targets", "rules", "proof", "repairs", "reporters", "cli")
    for name in files:
        for other in IMPORTS[name]:
            assert not within(other, *(f"vlmdoctor.{one}" for one in above)), f"{name} imports {other}"


def test_facts_and_rules_import_no_torch() -> None:
    """Neither they nor what they import; examples that build a model import it once they are run."""
    floors = ("vlmdoctor.evidence", "vlmdoctor.rules", "vlmdoctor.knowledge")
    names = [name for name in FILES if within(name, *floors)]
    script = (
        f"import importlib, sys\nfor name in {names!r}: importlib.import_module(name)\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "[]", done.stderr


def homes() -> list[str]:
    """The modules of evidence that say how deep a run has to go for it."""
    found = [info.name for info in pkgutil.walk_packages(vlmdoctor.evidence.__path__, "vlmdoctor.evidence.")]
    return [name for name in found if hasattr(importlib.import_module(name), "DEPTH")]


HOMES = homes()


@pytest.mark.parametrize("name", HOMES)
def test_each_kind_has_one_probe_or_a_reason_for_none(name: str) -> None:
    home = importlib.import_module(name)
    assert home.DEPTH in DEPTHS
    assert hasattr(home, "PROBE") != hasattr(home, "GIVEN")
    own = [v for v in vars(home).values() if dataclasses.is_dataclass(v) and v.__module__ == name]
    assert own and not hasattr(home, "probe")
    for kind in own:
        assert kind.__dataclass_params__.frozen, kind
    if hasattr(home, "GIVEN"):
        with pytest.raises(Unavailable, match=r"\w"):
            probe_of(own[-1])
        return
    assert within(home.PROBE, "vlmdoctor.probes") and home.PROBE in FILES
    (probe,) = [
        node
        for node in ast.parse(FILES[home.PROBE].read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name == "probe"
    ]
    assert probe.returns is not None and ast.unparse(probe.returns) == own[-1].__name__


def test_no_two_kinds_share_a_probe_and_no_probe_is_left_over() -> None:
    named = [getattr(importlib.import_module(name), "PROBE", None) for name in HOMES]
    named = [name for name in named if name is not None]
    there = {
        name
        for name, path in FILES.items()
        if within(name, "vlmdoctor.probes") and "\ndef probe(" in path.read_text(encoding="utf-8")
    }
    assert len(named) == len(set(named)) and set(named) == there


def test_rules_ask_for_kinds_of_evidence_alone() -> None:
    asked = {kind.__module__ for rule in all_rules() for kind, _ in rule.requirements.values()}
    assert asked <= set(HOMES)


def test_both_packages_say_that_they_are_typed() -> None:
    assert (ROOT / "py.typed").is_file() and (ROOT.parent / "minivlm" / "py.typed").is_file()
    settings = tomllib.loads((ROOT.parent / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    both = {"vlmdoctor", "minivlm"}
    assert set(settings["hatch"]["build"]["targets"]["wheel"]["packages"]) == both
    assert set(settings["mypy"]["packages"]) == both


def test_minivlm_imports_nothing_of_the_doctor() -> None:
    for path in (ROOT.parent / "minivlm").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(within(name, "vlmdoctor") for name in names), path
