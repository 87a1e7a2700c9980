"""docs/check.md: its example prints what it says, its tables name what there is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from vlmdoctor import contract, reporters
from vlmdoctor.engine import DEPTHS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    match = re.search(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    assert match is not None
    return match[1]


def findings(text: str) -> str:
    """Without the closing line, which counts the rules that there are today."""
    return text.strip().rpartition("\n\n")[0]


def test_the_example_prints_what_the_page_shows(tmp_path: Path) -> None:
    (tmp_path / "my_model.py").write_text(block("python"), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "vlmdoctor", "check", "my_model.py:build"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert findings(done.stdout) == findings(block("text"))
    assert "no-gradient GRAD201" in findings(done.stdout)


def test_the_contract_of_the_page_is_one() -> None:
    table = tomllib.loads(block("toml"))["tool"]["vlmdoctor"]["contract"]
    assert contract.parse(table, "the page")["language"] == "lora"
    assert all(f"`{key}`" in PAGE for key in (*contract.ROLE_KEYS, *table))


def test_every_format_and_depth_is_on_the_page() -> None:
    assert all(f"| `{name}` |" in PAGE for name in reporters.names())
    assert all(f"| `{depth}` |" in PAGE for depth in DEPTHS if depth != "shapes")
