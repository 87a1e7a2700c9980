"""What a person reads keeps to the words of docs/glossary.md, and to none that they replaced."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Words that a stranger stumbles over, and what to say instead.
INSTEAD = {
    r"told": "reported, given, inferred",
    r"held against": "compared with",
    r"holds? \w+ against": "compare with",
    r"reckon(ed|s|ing)?": "compute, estimate",
    r"fore(tell|tells|told)": "predict",
    r"(learned|learnt|know\w*) by heart": "overfit, memorised",
    r"its kin": "family",
    r"in vain": "too late",
    r"somebody('s)?": "the user, the user's",
    r"mend(s|ed|ing)?": "fix, repair",
    r"spoil(s|ed|t)?": "non-finite",
    r"no judgement possible": "could not run",
    r"nothing stands against": "no issues found",
    r"nothing found in \d": "No issues: 91 checks ran",
    r"with(out)? looking": "accuracy, accuracy (shuffled images)",
}
DIALECT = re.compile("|".join(rf"\b{word}\b" for word in INSTEAD), re.IGNORECASE)
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
SOURCES = sorted((ROOT / "vlmdoctor").rglob("*.py"))


def test_the_glossary_is_short() -> None:
    rows = re.findall(r"(?m)^\| (?!term |---)([^|]+) \|", (ROOT / "docs" / "glossary.md").read_text("utf-8"))
    assert 20 <= len(rows) <= 30
    assert rows == sorted(rows, key=str.lower)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_keep_to_the_words_of_the_field(page: Path) -> None:
    lines = page.read_text("utf-8").splitlines()
    assert [f"{number}: {line}" for number, line in enumerate(lines, 1) if DIALECT.search(line)] == []


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Every text in a file that is made of words: messages and docstrings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


@pytest.mark.parametrize(
    "folder", sorted({str(path.relative_to(ROOT / "vlmdoctor").parent) for path in SOURCES})
)
def test_messages_keep_to_the_words_of_the_field(folder: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {match[0]}"
        for path in SOURCES
        if str(path.relative_to(ROOT / "vlmdoctor").parent) == folder
        for line, text in texts(path.read_text("utf-8"))
        for match in DIALECT.finditer(text)
    ]
    assert found == []
