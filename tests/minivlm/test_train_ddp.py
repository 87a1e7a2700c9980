"""Two processes of gloo on a CPU learn what one process learns from batches of twice the size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from runs import Recorder, small

from minivlm.factory import load
from minivlm.train import train

SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from runs import Recorder, small
from minivlm.train import train

recorder = Recorder()
train(small(Path(sys.argv[2]), batch_size=2, accumulate=2, steps=4, save_every=2), [recorder])
if recorder.run is not None:
    print(json.dumps(recorder.records))
"""


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    single = Recorder()
    train(small(tmp_path / "one", batch_size=8, steps=4), [single])
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*launch, str(script), str(Path(__file__).parent), str(tmp_path / "two")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert result.returncode == 0, result.stderr
    records = json.loads(result.stdout.strip().splitlines()[-1])
    assert result.stdout.count("tokens_per_s") == 4  # only the main process calls callbacks
    assert [r["loss"] for r in records] == pytest.approx(single.losses, rel=1e-4)
    assert [r["grad_norm"] for r in records] == pytest.approx(
        [r["grad_norm"] for r in single.records], rel=1e-3
    )
    for name in ("tokens", "supervised_tokens", "lr", "epoch"):
        assert [r[name] for r in records] == [r[name] for r in single.records]

    together, _ = load(tmp_path / "two" / "checkpoint")
    alone, _ = load(tmp_path / "one" / "checkpoint")
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], value, rtol=1e-2, atol=2e-4)
    state = torch.load(tmp_path / "two" / "checkpoint" / "training_state.pt", weights_only=True)
    assert len(state["random"]) == 2
