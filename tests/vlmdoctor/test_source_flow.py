"""Settings that come too late, trainings that stay on the CPU, and what shell and container files say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlmdoctor.engine import Gatherer, judge
from vlmdoctor.probes.source.scan import scan
from vlmdoctor.rulebook import rules_in

TRAINS = "\nloss.backward()\noptimizer.step()\n"
SET = 'os.environ["CUDA_VISIBLE_DEVICES"] = "1"\n'


def found(tmp_path: Path, name: str, text: str) -> list[tuple[str, str, int | None]]:
    """(rule, severity, line) of what the rules for sources say about one file."""
    file = tmp_path / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    report = judge(rules_in("src"), Gatherer(None, [scan([file])]), command="test", target=name)
    assert report.crashed == ()
    return [(f.rule, str(f.severity), f.line) for f in report.findings]


@pytest.mark.parametrize(
    "first",
    [
        "torch.cuda.is_available()",
        "device = 'cuda' if torch.cuda.is_available() else 'cpu'",
        "torch.cuda.set_device(0)",
        "model.cuda()",
        "x = model.to('cuda:0')",
        "x = model.to(torch.device('cuda'))",
        "x = torch.zeros(1, device='cuda')",
        "accelerator = Accelerator()",
        "arguments = transformers.TrainingArguments('out')",
        "import flash_attn",
        "from flash_attn import flash_attn_func",
        "if torch.cuda.is_available():\n    pass",
        "m = AutoModel.from_pretrained('x', device_map='cuda')",
    ],
)
def test_a_choice_of_gpus_that_comes_too_late(tmp_path: Path, first: str) -> None:
    text = f"import os\nimport torch\n{first}\n{SET}{TRAINS}"
    ((rule, severity, line),) = found(tmp_path, "train.py", text)
    assert (rule, severity) == ("setting-too-late", "error")
    assert text.splitlines()[line - 1] == SET.strip()


@pytest.mark.parametrize(
    "text",
    [
        SET + "torch.cuda.is_available()",
        "import torch\n" + SET,
        "import torch\nmodel = torch.nn.Linear(1, 1)\nx = x.to('cpu')\n" + SET,
        "def later():\n    torch.cuda.is_available()\n" + SET,
        "if args.late:\n    torch.cuda.init()\n" + SET,
        "cuda = lambda: torch.cuda.is_available()\n" + SET,
        "torch.cuda.manual_seed_all(0)\n" + SET,
        "model.to(device)\n" + SET,
        "import subprocess\ntorch.cuda.is_available()\n" + SET + "subprocess.run(['python', 'x.py'])",
        "torch.cuda.is_available()\ndef child():\n    " + SET,
        SET + "torch.cuda.is_available()\n" + SET,
        "torch.cuda.is_available()\nos.environ.pop('CUDA_VISIBLE_DEVICES')",
    ],
)
def test_what_comes_in_time_is_silent(tmp_path: Path, text: str) -> None:
    assert found(tmp_path, "train.py", f"import os\n{text}\n{TRAINS}") == []


@pytest.mark.parametrize(
    ("text", "severity"),
    [
        ("import transformers\nos.environ['HF_HUB_OFFLINE'] = '1'", "warning"),
        ("from datasets import load_dataset\nos.environ['HF_HOME'] = '/data'", "warning"),
        ("from transformers import AutoModel\nos.environ['TRANSFORMERS_OFFLINE'] = '1'", "warning"),
        ("torch.cuda.init()\nos.environ['PYTORCH_CUDA_ALLOC_CONF'] = 'expandable_segments:True'", "warning"),
        ("import numpy as np\nos.environ['OMP_NUM_THREADS'] = '4'", "info"),
        ("import torch\nos.environ.setdefault('OMP_NUM_THREADS', '4')", "info"),
    ],
)
def test_other_variables_that_come_too_late(tmp_path: Path, text: str, severity: str) -> None:
    assert found(tmp_path, "train.py", f"import os\n{text}\n") == [("setting-too-late", severity, 3)]


@pytest.mark.parametrize(
    "text",
    [
        "os.environ['HF_HUB_OFFLINE'] = '1'\nimport transformers",
        "import torch\nos.environ['HF_HOME'] = '/data'",
        "import torch\nos.environ['TOKENIZERS_PARALLELISM'] = 'false'",
        "try:\n    pass\nexcept ImportError:\n    import transformers\nos.environ['HF_HOME'] = '/data'",
    ],
)
def test_other_variables_that_come_in_time(tmp_path: Path, text: str) -> None:
    assert found(tmp_path, "train.py", f"import os\n{text}\n") == []


def test_cells_of_a_notebook_are_run_from_top_to_bottom(tmp_path: Path) -> None:
    cells = ["import os, torch\ntorch.cuda.is_available()", "%env CUDA_VISIBLE_DEVICES=1", "loss.backward()"]
    text = json.dumps({"cells": [{"cell_type": "code", "source": cell} for cell in cells]})
    assert found(tmp_path, "train.ipynb", text) == [("setting-too-late", "error", 1)]
    swapped = json.dumps(
        {"cells": [{"cell_type": "code", "source": cell} for cell in (cells[1], cells[0], cells[2])]}
    )
    assert found(tmp_path, "train.ipynb", swapped) == []


def test_in_tests_it_does_not_matter(tmp_path: Path) -> None:
    text = f"import os, torch\ntorch.cuda.is_available()\n{SET}device = 'cpu'\nmodel.to(device)\n{TRAINS}"
    assert found(tmp_path, "tests/test_train.py", text) == []


@pytest.mark.parametrize(
    "text",
    [
        'device = "cpu"\nmodel.to(device)',
        'device = torch.device("cpu")\nbatch = batch.to(device)',
        'DEVICE = "cpu"\nx = torch.zeros(1, device=DEVICE)',
        "model.cpu()",
        "model = model.cpu()",
        'model.to("cpu")',
        'def main():\n    device = "cpu"\n    model.to(device)\nmain()',
        "accelerator = Accelerator(cpu=True)",
        "arguments = TrainingArguments(output_dir='x', use_cpu=True)",
        "arguments = TrainingArguments(output_dir='x', no_cuda=True)",
        'trainer = L.Trainer(accelerator="cpu")',
    ],
)
def test_a_training_that_stays_on_the_cpu_is_a_hint(tmp_path: Path, text: str) -> None:
    ((rule, severity, _),) = found(tmp_path, "train.py", f"import torch\n{text}\n{TRAINS}")
    assert (rule, severity) == ("training-on-cpu-in-source", "info")


@pytest.mark.parametrize(
    "text",
    [
        'device = "cuda" if torch.cuda.is_available() else "cpu"\nmodel.to(device)',
        'device = "cpu"\nif torch.cuda.is_available():\n    device = "cuda"\nmodel.to(device)',
        'if args.cpu:\n    device = "cpu"\nmodel.to(device)',
        'device = "cpu"',
        'map_location = "cpu"\ntorch.load("x", map_location="cpu")',
        "print(loss.cpu())\nlogits = logits.cpu()\nfeatures.to('cpu')",
        "loss.backward()\nmodel.cpu()\ntorch.save(model.state_dict(), 'x')",
        "model.cpu()\nmodel.cuda()",
        "model = model.cpu()\nmodel = accelerator.prepare(model)",
        "def evaluate():\n    device = 'cpu'\n    model.to(device)\nevaluate()",
        "def unused():\n    model.cpu()",
        "torch.save(model.cpu().state_dict(), 'x')",
        'parser.add_argument("--device", default="cpu")',
        "arguments = TrainingArguments(output_dir='x', use_cpu=False)",
        "arguments = TrainingArguments(output_dir='x', use_cpu=not torch.cuda.is_available())",
        "# device = 'cpu'",
        "ema_cpu = copy.deepcopy(model).cpu()",
        "buffer_device = 'cpu'",
    ],
)
def test_what_belongs_on_the_cpu_is_silent(tmp_path: Path, text: str) -> None:
    assert found(tmp_path, "train.py", f"import torch\n{text}\n{TRAINS}") == []


def test_a_script_that_does_not_train_may_use_the_cpu(tmp_path: Path) -> None:
    assert (
        found(tmp_path, "convert.py", 'import torch\ndevice = "cpu"\nmodel.to(device)\nmodel.cpu()\n') == []
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("export CUDA_VISIBLE_DEVICES=0-3\npython train.py", [("devices-misread-in-source", "warning", 1)]),
        ("CUDA_VISIBLE_DEVICES='0 1' python train.py", [("devices-misread-in-source", "warning", 1)]),
        ("A=1 B=2 CUDA_VISIBLE_DEVICES= python train.py", [("gpu-hidden-in-source", "error", 1)]),
        (
            "#SBATCH --export=ALL,CUDA_VISIBLE_DEVICES=\nsrun python train.py",
            [("gpu-hidden-in-source", "error", 1)],
        ),
        ("#SBATCH --gres=gpu:4\nexport CUDA_VISIBLE_DEVICES=0,1\nsrun python train.py", []),
        (
            "OMP_NUM_THREADS=4 \\\nCUDA_VISIBLE_DEVICES='' \\\npython train.py",
            [("gpu-hidden-in-source", "error", 1)],
        ),
        (
            "export CUDA_VISIBLE_DEVICES=2,3\ndeepspeed --num_gpus 2 train.py",
            [("launcher-overrides-devices", "warning", 2)],
        ),
        (
            "CUDA_VISIBLE_DEVICES=2,3 deepspeed --include localhost:0 \\\n  train.py",
            [("launcher-overrides-devices", "warning", 1)],
        ),
        ("deepspeed --include localhost:2,3 train.py", []),
        ("CUDA_VISIBLE_DEVICES=0 python a.py\ndeepspeed --num_gpus 2 train.py", []),
        ("export NCCL_P2P5ISABLE=1\ntorchrun train.py", [("setting-without-effect-in-source", "warning", 1)]),
        (
            "export CUDA_LAUNCH_BLOCKING=1\npython train.py",
            [("setting-without-effect-in-source", "warning", 1)],
        ),
        ("if [ $DEBUG ]; then\nexport CUDA_LAUNCH_BLOCKING=1\nfi\npython train.py", []),
        (
            "export PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb=512\npython train.py",
            [("setting-without-effect-in-source", "warning", 1)],
        ),
        ("export PYTORCH_CUDA_ALLOC_CONF=max_split_size_mb:512\npython train.py", []),
        ("accelerate launch --cpu train.py", [("training-on-cpu-in-source", "info", 1)]),
        ("python train.py --no_cuda", [("training-on-cpu-in-source", "info", 1)]),
        ("python train.py --device cuda", []),
        ("python evaluate.py --device cpu", []),
        ("NCCL_DEBUG=INFO torchrun --nproc_per_node 8 train.py", []),
        ("echo 'CUDA_VISIBLE_DEVICES=0-3 python train.py'", []),
    ],
)
def test_shell_and_batch_scripts(tmp_path: Path, text: str, expected: list[tuple[str, str, int]]) -> None:
    assert found(tmp_path, "run.sh", text) == expected


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["environment:", '  - CUDA_VISIBLE_DEVICES="0,1"'], [("devices-misread-in-source", "warning", 5)]),
        (["environment:", '  - "CUDA_VISIBLE_DEVICES=0,1"'], []),
        (["environment:", '  CUDA_VISIBLE_DEVICES: "0,1"'], []),
        (["environment:", "  CUDA_VISIBLE_DEVICES: ''"], [("gpu-hidden-in-source", "warning", 5)]),
        (["environment:", "  CUDA_VISIBLE_DEVICES:"], []),
        (["environment:", "  - CUDA_VISIBLE_DEVICES"], []),
        (["environment:", "  - CUDA_VISIBLE_DEVICES=${GPUS}"], []),
        (["environment:", "  - NVIDIA_VISIBLE_DEVICES=void"], [("devices-misread-in-source", "warning", 5)]),
        (["environment:", "  - NVIDIA_VISIBLE_DEVICES=all"], []),
        (["labels:", "  - CUDA_VISIBLE_DEVICES="], []),
    ],
)
def test_compose_files(tmp_path: Path, lines: list[str], expected: list[tuple[str, str, int]]) -> None:
    text = "\n".join(["services:", "  train:", "    image: x", *(f"    {line}" for line in lines), ""])
    got = found(tmp_path, "docker-compose.yml", text)
    if expected and expected[0][0] == "devices-misread-in-source" and '="0,1"' in text:
        # Torch sees nothing at all of a value in quotes.
        expected = [("gpu-hidden-in-source", "warning", 5)]
    assert got == expected


def test_dockerfiles(tmp_path: Path) -> None:
    text = "FROM x\nENV A=1 \\\n    NVIDIA_VISIBLE_DEVICES=void\nENV CUDA_VISIBLE_DEVICES 0-3\n"
    rules = [(rule, line) for rule, _, line in found(tmp_path, "Dockerfile", text)]
    assert rules == [("devices-misread-in-source", 2), ("devices-misread-in-source", 4)]


HIDDEN = 'os.environ["CUDA_VISIBLE_DEVICES"] = ""'


@pytest.mark.parametrize(
    ("text", "severities"),
    [
        (
            f"def hide():\n    {HIDDEN}\ndef main():\n    hide()\nif __name__ == '__main__':\n    main()",
            ["error"],
        ),
        (f"class T:\n    def __init__(self):\n        {HIDDEN}\nT()", ["error"]),
        (f"class T:\n    def hide(self):\n        {HIDDEN}\nT().hide()", ["error"]),
        (f"def main():\n    {HIDDEN}\nfire.Fire(main)", ["error"]),
        (f"@hydra.main()\ndef main(cfg):\n    {HIDDEN}\n", ["error"]),
        (f"def train():\n    {HIDDEN}\nif args.do_train:\n    train()", ["warning"]),
        (f"def hide():\n    {HIDDEN}\nif args.cpu:\n    hide()", []),
        # Called only by what nothing calls: a library, whose callers are not known.
        (f"def scrub():\n    {HIDDEN}\ndef child():\n    scrub()", []),
        (f"def scrub():\n    {HIDDEN}\nmp.Process(target=scrub).start()", []),
    ],
)
def test_what_is_run_is_followed_through_the_calls(tmp_path: Path, text: str, severities: list[str]) -> None:
    told = found(tmp_path, "train.py", f"import os, torch\n{text}\n{TRAINS}")
    assert [severity for _, severity, _ in told] == severities


def test_a_model_that_is_moved_out_of_the_way_is_no_hint(tmp_path: Path) -> None:
    for end in ("del codec_model", "codec_model = None"):
        assert found(tmp_path, "train.py", f"import torch\ncodec_model.to('cpu')\n{end}\n{TRAINS}") == []


def test_settings_of_a_launcher_are_for_its_children(tmp_path: Path) -> None:
    text = "import os, torch\nos.environ['OMP_NUM_THREADS'] = '4'\ntorchrun.main(arguments)\n"
    assert found(tmp_path, "launch.py", text) == []
