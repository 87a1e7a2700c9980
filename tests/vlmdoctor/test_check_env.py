"""`vlmdoctor check-env` as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"

# Torch is not there at all for this interpreter: importing it raises.
WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "matplotlib", "pandas", "numpy"):
            raise ImportError(f"{name} must not be imported")
sys.meta_path.insert(0, Refuse())
from vlmdoctor.cli.main import run
run()
"""


def check_env(*arguments: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "check-env", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=EXAMPLES.parent,
        env={**os.environ, **environ},
        timeout=60,
    )


def test_the_hidden_gpu_is_found_without_importing_torch() -> None:
    result = check_env("examples/hidden_gpu.py")
    assert result.returncode == 1, result.stderr
    assert "gpu-hidden-in-source SRC101" in result.stdout
    line = (EXAMPLES / "hidden_gpu.py").read_text().splitlines().index(
        'os.environ["CUDA_VISIBLE_DEVICES"] = ""'
    ) + 1
    assert f"examples/hidden_gpu.py:{line}" in result.stdout
    assert result.stderr == ""


def test_the_repaired_script_passes_with_a_plain_statement() -> None:
    result = check_env("examples/hidden_gpu_fixed.py")
    assert result.returncode == 0, result.stdout
    assert "nothing found in 2 rules run" in result.stdout
    assert result.stdout.startswith(f"Python {sys.version.split()[0]} on ")


def test_without_a_path_the_machine_alone_is_judged() -> None:
    result = check_env("--output-format", "json")
    report = json.loads(result.stdout)
    assert report["command"] == "check-env"
    assert report["ran"] == ["gpu-hidden-by-environment"]
    assert [skip["rule"] for skip in report["skipped"]] == ["gpu-hidden-in-source"]
    assert set(report["facts"]) >= {"python", "platform", "packages", "gpus", "variables"}


def test_json_findings_name_file_and_line() -> None:
    result = check_env("examples", "--output-format", "json")
    report = json.loads(result.stdout)
    (finding,) = report["findings"]
    assert (finding["rule"], finding["severity"]) == ("gpu-hidden-in-source", "error")
    assert finding["file"] == "examples/hidden_gpu.py"
    assert report["verdict"] == "fail"
    assert report["facts"]["files"] >= 6


def test_bad_paths_are_one_sentence_and_status_2(tmp_path: Path) -> None:
    for path in ("nowhere.py", tmp_path):
        result = check_env(path)
        assert result.returncode == 2
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
        assert str(path) in result.stderr


def test_fail_on_never_and_exit_zero() -> None:
    assert check_env("examples/hidden_gpu.py", "--fail-on", "never").returncode == 0
    assert check_env("examples/hidden_gpu.py", "--exit-zero").returncode == 0
