"""Writes docs/evidence.md from the code, importing no torch: `python docs/make_evidence.py`."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from pathlib import Path

import vlmdoctor.evidence
from vlmdoctor.engine import DEPTHS
from vlmdoctor.rulebook import all_rules

PAGE = Path(__file__).parent / "evidence.md"


def kinds() -> list[type]:
    """Every kind of evidence: the last dataclass of each module that says how deep a run has to go for it."""
    found = []
    for info in pkgutil.walk_packages(vlmdoctor.evidence.__path__, "vlmdoctor.evidence."):
        module = importlib.import_module(info.name)
        if hasattr(module, "DEPTH"):
            own = [
                value
                for value in vars(module).values()
                if dataclasses.is_dataclass(value) and getattr(value, "__module__", "") == info.name
            ]
            found.append(own[-1])
    return sorted(found, key=lambda kind: (DEPTHS.index(_home(kind).DEPTH), kind.__name__))


def page() -> str:
    """The page: a table of all kinds, then the rules that use each."""
    users = {
        kind: [r for r in all_rules() if kind in (needed for needed, _ in r.requirements.values())]
        for kind in kinds()
    }
    lines = [
        "# Evidence",
        "",
        "Made from the code by `docs/make_evidence.py`. A rule asks for evidence by annotation; the engine",
        "runs the probe once for all that ask. The depth is how deep a check has to go for it (`--depth`).",
        "",
        "| evidence | what it knows | depth | probe | rules |",
        "|---|---|---|---|---|",
    ]
    for kind, rules in users.items():
        home = _home(kind)
        summary = (home.__doc__ or "").strip().splitlines()[0].rstrip(".")
        link = f"[{kind.__name__}](#{kind.__name__.lower()})"
        lines.append(f"| {link} | {summary} | {home.DEPTH} | {_probe(home)} | {len(rules)} |")
    for kind, rules in users.items():
        links = ", ".join(f"[{rule.name}](rules.md#{rule.name})" for rule in rules)
        lines += [
            "",
            f"## {kind.__name__}",
            "",
            f"`{kind.__module__}`",
            "",
            f"{links}." if rules else "No rule alone.",
        ]
    return "\n".join(lines) + "\n"


def _home(kind: type) -> object:
    return importlib.import_module(kind.__module__)


def _probe(home: object) -> str:
    named = getattr(home, "PROBE", None)
    return f"`{named.removeprefix('vlmdoctor.')}`" if named else "handed in"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
