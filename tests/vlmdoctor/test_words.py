"""The words of messages, pages and docs: those of the glossary, and none of an older dialect."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DIALECT = re.compile(
    r"\b(told|held against|reckon(ed|s)?|foretells?|foretold|by heart|its kin|in vain|somebody('s)?|"
    r"mend(ed|s|ing)?|spoiled|no judgement possible|stands? against)\b",
    re.IGNORECASE,
)
# docs/detection.md, docs/rules.md and docs/evidence.md are made from the code.
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE = {"detection.md"}
RULES = sorted((ROOT / "vlmdoctor" / "rules").rglob("*.py"))
SPOKEN = sorted(
    path
    for name in ("reporters", "cli", "runs", "live", "look")
    for path in (ROOT / "vlmdoctor" / name).rglob("*.py")
)


def dialect(text: str) -> list[str]:
    return [match.group() for match in DIALECT.finditer(text)]


def texts(path: Path) -> str:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    return "\n".join(value for value in found if isinstance(value, str))


def test_the_glossary_has_at_most_thirty_terms() -> None:
    lines = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8").splitlines()
    assert 0 < sum(line.startswith("| ") for line in lines) - 1 <= 30


@pytest.mark.parametrize("path", [p for p in PAGES if p.name not in MADE], ids=lambda p: p.name)
def test_pages_keep_to_the_words(path: Path) -> None:
    assert not dialect(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [*RULES, *SPOKEN], ids=lambda p: str(p.relative_to(ROOT)))
def test_messages_keep_to_the_words(path: Path) -> None:
    assert not dialect(texts(path))
