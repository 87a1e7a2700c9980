"""Finding settings of GPU variables in files, without running them."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmdoctor.errors import UserError
from vlmdoctor.evidence.source import Setting, Source
from vlmdoctor.finding import Severity
from vlmdoctor.knowledge.visible_devices import sees_nothing
from vlmdoctor.probes.source.scan import scan
from vlmdoctor.rules.src.gpu_hidden_in_source import gpu_hidden_in_source

TRAINING = "\nimport torch\nloss.backward()\noptimizer.step()\n"


def settings_of(tmp_path: Path, name: str, text: str) -> list[Setting]:
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return list(scan([file]).settings)


def severities(tmp_path: Path, name: str, text: str) -> list[Severity]:
    source = Source(files=1, settings=tuple(settings_of(tmp_path, name, text)))
    return [finding.severity for finding in gpu_hidden_in_source.function(source)]


@pytest.mark.parametrize(
    "line",
    [
        'os.environ["CUDA_VISIBLE_DEVICES"] = ""',
        "os.environ['CUDA_VISIBLE_DEVICES'] = '-1'",
        'environ["CUDA_VISIBLE_DEVICES"] = ""',
        'os.environ["CUDA_VISIBLE_DEVICES"] = str(-1)',
        'os.environ.update({"CUDA_VISIBLE_DEVICES": ""})',
        'os.environ.update(CUDA_VISIBLE_DEVICES="-1", OMP_NUM_THREADS="1")',
        'os.environ |= {"CUDA_VISIBLE_DEVICES": ""}',
        'os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")',
        'os.putenv("CUDA_VISIBLE_DEVICES", "")',
        'os.environ["CUDA_VISIBLE_DEVICES"] = "all"',
        'if __name__ == "__main__":\n    os.environ["CUDA_VISIBLE_DEVICES"] = ""',
        'def main():\n    os.environ["CUDA_VISIBLE_DEVICES"] = ""\nmain()',
        'with open("log") as f:\n    os.environ["CUDA_VISIBLE_DEVICES"] = ""',
    ],
)
def test_hiding_in_a_training_script_is_an_error(tmp_path: Path, line: str) -> None:
    assert severities(tmp_path, "train.py", f"import os\n{line}\n{TRAINING}") == [Severity.ERROR]


@pytest.mark.parametrize(
    "text",
    [
        'os.environ["CUDA_VISIBLE_DEVICES"] = "0"',
        'os.environ["CUDA_VISIBLE_DEVICES"] = args.gpus',
        'os.environ["CUDA_VISIBLE_DEVICES"] = "" if args.cpu else "0"',
        'if args.cpu:\n    os.environ["CUDA_VISIBLE_DEVICES"] = ""',
        'if args.gpu >= 0:\n    pass\nelse:\n    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"',
        'if not torch.cuda.is_available():\n    os.environ["CUDA_VISIBLE_DEVICES"] = ""',
        'def force_cpu():\n    os.environ["CUDA_VISIBLE_DEVICES"] = ""',
        '# os.environ["CUDA_VISIBLE_DEVICES"] = ""',
        '"""Set os.environ["CUDA_VISIBLE_DEVICES"] = "" to train on the CPU."""',
        'os.environ["CUDA_VISIBLE_DEVICES"] = ""\nimport tensorflow\ndel os.environ["CUDA_VISIBLE_DEVICES"]',
        'os.environ["CUDA_VISIBLE_DEVICES"] = ""\nos.environ["CUDA_VISIBLE_DEVICES"] = "0"',
        'subprocess.run(["x"], env={"CUDA_VISIBLE_DEVICES": ""})',
        'if os.environ["CUDA_VISIBLE_DEVICES"] == "":\n    pass',
        'print("CUDA_VISIBLE_DEVICES=")',
        'config["CUDA_VISIBLE_DEVICES"] = ""',
    ],
)
def test_what_is_no_fault_is_silent(tmp_path: Path, text: str) -> None:
    assert severities(tmp_path, "train.py", f"import os\n{text}\n{TRAINING}") == []


def test_severity_depends_on_what_the_file_does(tmp_path: Path) -> None:
    line = 'import os\nos.environ["CUDA_VISIBLE_DEVICES"] = ""\n'
    assert severities(tmp_path, "common.py", line + "import torch\n") == [Severity.WARNING]
    assert severities(tmp_path, "convert.py", line) == [Severity.INFO]
    assert severities(tmp_path, "tests/test_train.py", line + TRAINING) == [Severity.INFO]
    unknown = "import os\nif fold == 3:\n    os.environ['CUDA_VISIBLE_DEVICES'] = ''\n" + TRAINING
    assert severities(tmp_path, "train.py", unknown) == [Severity.WARNING]


def test_a_finding_names_file_and_line(tmp_path: Path) -> None:
    (setting,) = settings_of(
        tmp_path, "train.py", f'import os\n\nos.environ["CUDA_VISIBLE_DEVICES"] = ""  # debug\n{TRAINING}'
    )
    assert (setting.file, setting.line) == (str(tmp_path / "train.py"), 3)
    assert setting.code.startswith('os.environ["CUDA_VISIBLE_DEVICES"]')


def notebook(*cells: str) -> str:
    made = [{"cell_type": "code", "source": cell.splitlines(keepends=True)} for cell in cells]
    return json.dumps({"cells": [{"cell_type": "markdown", "source": ["# Title"]}, *made], "nbformat": 4})


@pytest.mark.parametrize(
    "cell",
    [
        "%env CUDA_VISIBLE_DEVICES=-1",
        "%env CUDA_VISIBLE_DEVICES -1",
        "%set_env CUDA_VISIBLE_DEVICES=",
        '!pip install x\nimport os\nos.environ["CUDA_VISIBLE_DEVICES"] = ""',
        '%%time\nimport os\nos.environ["CUDA_VISIBLE_DEVICES"] = ""',
        'import os; os.environ["CUDA_VISIBLE_DEVICES"] = ""\nif True:\n    !nvidia-smi',
    ],
)
def test_notebooks(tmp_path: Path, cell: str) -> None:
    text = notebook("import torch", cell, "loss.backward()")
    (setting,) = settings_of(tmp_path, "train.ipynb", text)
    assert setting.cell == 3
    assert severities(tmp_path, "train.ipynb", text) == [Severity.ERROR]


@pytest.mark.parametrize("cell", ["%%bash\nexport CUDA_VISIBLE_DEVICES=", "!export CUDA_VISIBLE_DEVICES="])
def test_what_a_notebook_runs_in_another_process_is_silent(tmp_path: Path, cell: str) -> None:
    assert settings_of(tmp_path, "train.ipynb", notebook("import torch", cell, "loss.backward()")) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('export CUDA_VISIBLE_DEVICES=""\npython train.py', [Severity.ERROR]),
        ("export CUDA_VISIBLE_DEVICES=-1\ntorchrun --nproc-per-node 2 main.py", [Severity.ERROR]),
        ("CUDA_VISIBLE_DEVICES= python train.py --lr 1e-3", [Severity.ERROR]),
        ("CUDA_VISIBLE_DEVICES='' OMP_NUM_THREADS=4 python train.py", [Severity.ERROR]),
        ("OMP_NUM_THREADS=4 CUDA_VISIBLE_DEVICES='' python train.py", [Severity.ERROR]),
        ("CUDA_VISIBLE_DEVICES= python tokenize_data.py\npython train.py", [Severity.INFO]),
        ("setenv CUDA_VISIBLE_DEVICES -1\npython train.py", [Severity.ERROR]),
        ("export CUDA_VISIBLE_DEVICES=0,1\npython train.py", []),
        ("export CUDA_VISIBLE_DEVICES=$1\npython train.py", []),
        ("# export CUDA_VISIBLE_DEVICES=\npython train.py", []),
        ('if [ "$CPU" = 1 ]; then\n  export CUDA_VISIBLE_DEVICES=\nfi\npython train.py', []),
        ("export CUDA_VISIBLE_DEVICES=\npython prepare.py\nunset CUDA_VISIBLE_DEVICES\npython train.py", []),
        ("echo CUDA_VISIBLE_DEVICES=\npython train.py", []),
    ],
)
def test_shell_scripts(tmp_path: Path, text: str, expected: list[Severity]) -> None:
    assert severities(tmp_path, "run.sh", text) == expected


def test_dockerfiles_and_env_files(tmp_path: Path) -> None:
    assert severities(tmp_path, "Dockerfile", "FROM x\nENV CUDA_VISIBLE_DEVICES=-1\n") == [Severity.WARNING]
    assert severities(tmp_path, "Dockerfile.gpu", 'ENV A=1 CUDA_VISIBLE_DEVICES=""\n') == [Severity.WARNING]
    assert (
        severities(tmp_path, "Dockerfile", "ARG CUDA_VISIBLE_DEVICES=-1\nENV CUDA_VISIBLE_DEVICES=0\n") == []
    )
    assert [s.value for s in settings_of(tmp_path, ".env", "CUDA_VISIBLE_DEVICES=\n")] == [""]


def test_folders_are_walked_without_environments_and_packages(tmp_path: Path) -> None:
    line = 'import os, torch\nos.environ["CUDA_VISIBLE_DEVICES"] = ""\nloss.backward()\n'
    for place in ("src/train.py", ".git/x.py", "node_modules/y.py", "env/lib/z.py", "lib/site-packages/w.py"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(line)
    (tmp_path / "env/pyvenv.cfg").write_text("home = /usr\n")
    source = scan([tmp_path])
    assert source.files == 1
    assert [Path(setting.file).name for setting in source.settings] == ["train.py"]


def test_broken_files_are_listed_and_the_others_read(tmp_path: Path) -> None:
    (tmp_path / "old.py").write_text('os.environ["CUDA_VISIBLE_DEVICES"] = ""\nprint "old"\n')
    (tmp_path / "cut.ipynb").write_text(
        '{"cells": [{"cell_type": "code", "source": "%env CUDA_VISIBLE_DEVICES='
    )
    (tmp_path / "latin.py").write_bytes(b'# \xe9\nimport os\nos.environ["CUDA_VISIBLE_DEVICES"] = ""\n')
    source = scan([tmp_path])
    assert {Path(file).name for file, _ in source.unread} == {"old.py", "cut.ipynb"}
    assert len(source.settings) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere.py", "no file or folder"), ("x.png", "of no kind"), ("empty", "no Python file")],
)
def test_bad_paths_are_one_sentence(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "x.png").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=words):
        scan([tmp_path / name])


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=300))
def test_no_file_makes_it_stumble(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.py", "b.ipynb", "c.sh", "Dockerfile"):
            (Path(folder) / name).write_bytes(b"CUDA_VISIBLE_DEVICES=" + data)
        assert scan([Path(folder)]).files == 4


@settings(deadline=None)
@given(st.text(alphabet="0123456789,-+ alGPU", max_size=8))
def test_values_are_read_as_torch_reads_them(value: str) -> None:
    with patch.dict(os.environ, {"CUDA_VISIBLE_DEVICES": value}):
        try:
            visible = torch.cuda._parse_visible_devices()
        except ValueError:
            return  # torch itself stumbles over a sign without a number
    assert sees_nothing(value) == (not visible)
