"""A check leaves no trace on what the Subject leads to; what can't be put back is refused and named."""

from __future__ import annotations

import io
import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import vlmdoctor
from benchmarks.hostile.families_state import FAMILIES
from benchmarks.hostile.families_state.tiny import touching
from benchmarks.hostile.fingerprint import changed, fingerprint
from vlmdoctor.errors import WouldMove
from vlmdoctor.sandbox.iterators import Refusing, twin_of
from vlmdoctor.sandbox.reach import Reach
from vlmdoctor.sandbox.restore import copy_of, restoring

SAMPLE = (
    *("ema-in-dict", "ema-slots", "queue-deque", "moco-momentum-encoder", "batch-norm-in-object"),
    *(
        "batch-norm-in-closure",
        "gradient-of-a-hidden-parameter",
        "expanded-buffer",
        "hooks-and-modules-added",
    ),
    *("counter", "counter-of-class", "counter-of-module", "counter-in-closure", "array-of-numpy"),
    *("array-of-objects", "bytes-and-numbers", "cache-in-order", "iterator-count", "iterator-of-list"),
    *("random-torch", "random-numpy", "random-python", "hostile-objects", "cycles", "loss-closure"),
    *("loss-in-the-optimizer", "loss-object-with-average", "stream-over-iterator"),
    *("dataset-with-generators", "dataset-of-arrays-edited", "collator-with-generator", "batch-dataclass"),
    *("batch-frozen-slots", "batch-with-arrays", "scheduler-with-a-count", "optimizer-around-another"),
    *("process-settings-of-torch", "process-environment", "process-warnings", "weights-shared-with-a-graph"),
)


@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.filterwarnings("ignore")
def test_a_check_changes_nothing(name: str) -> None:
    made = FAMILIES[name]()
    before = fingerprint(made)
    report = vlmdoctor.check(made)
    assert report.ran
    assert changed(before, fingerprint(made)) == []


def test_every_family_can_be_built() -> None:
    assert len(FAMILIES) >= 60
    assert set(SAMPLE) <= set(FAMILIES)


def test_what_would_move_a_live_generator_is_not_run_and_says_why() -> None:
    made = FAMILIES["generator-live"]()
    report = vlmdoctor.check(made)
    assert report.facts["not_kept"] == [{"at": "model.steps", "why": "a live generator can't be put back"}]
    assert next(made.model.steps) == 1
    reasons = dict(report.skipped)
    assert "it would move model.steps" in reasons["forward-raises"]
    assert report.findings == ()
    assert not report.crashed


def test_a_live_generator_that_nobody_reads_keeps_no_rule_from_running() -> None:
    plain = vlmdoctor.check(touching(lambda m, x: None))
    held = vlmdoctor.check(FAMILIES["generator-live-untouched"]())
    assert set(plain.ran) <= set(held.ran)
    assert [one["at"] for one in held.facts["not_kept"]] == ["model.steps"]


def test_a_stream_over_a_live_generator_loses_no_sample() -> None:
    made = FAMILIES["stream-over-generator"]()
    report = vlmdoctor.check(made)
    assert next(made.train_dataset.source) == 0
    assert "train_dataset.source" in dict(report.skipped)["batch-form"]


def test_the_full_report_names_what_is_not_kept() -> None:
    from vlmdoctor.reporters.full import render

    report = vlmdoctor.check(FAMILIES["generator-live-untouched"](), depth="static")
    shown = render(report, color=False, verbose=True, quiet=False, width=120)
    assert "model.steps: a live generator can't be put back" in shown


def test_the_trial_trains_a_learnable_loss_and_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmdoctor.probes.training import trial_steps

    made = FAMILIES["loss-in-the-optimizer"]()
    values: list[float] = []
    step = trial_steps.step

    def recorded(*given: Any) -> float:
        loss = step(*given)
        values.append(float(made.loss_fn.temperature))
        return loss

    monkeypatch.setattr(trial_steps, "step", recorded)
    assert trial_steps.trial_steps(made).steps
    assert len(set(values)) == len(values) > 1
    assert float(made.loss_fn.temperature) == 1.0
    assert made.loss_fn.temperature.grad is None


def test_a_batch_that_is_an_object_is_copied_with_all_that_it_holds() -> None:
    given = SimpleNamespace(ids=torch.ones(2), weights=np.ones(2), rows=[{"a": torch.zeros(1)}])
    made = copy_of(given)
    made.ids += 1
    made.weights += 1
    made.rows[0].pop("a")
    assert given.ids.tolist() == [1, 1] and given.weights.tolist() == [1, 1] and "a" in given.rows[0]


@pytest.mark.parametrize(
    "iterator",
    [
        itertools.count(5, 2),
        itertools.cycle([1, 2, 3]),
        enumerate(iter("abcdef")),
        zip(iter(range(9)), itertools.count(), strict=False),
        map(str, iter([1, 2, 3])),
        itertools.islice(iter(range(100)), 3, 50, 2),
        itertools.chain([1, 2], [3, 4]),
        reversed([1, 2, 3]),
    ],
    ids=lambda one: type(one).__name__,
)
def test_a_twin_of_an_iterator_moves_by_itself(iterator: Any) -> None:
    next(iterator)
    twin = twin_of(iterator)
    moved = [next(twin), next(twin)]
    assert [next(iterator), next(iterator)] == moved


def test_there_is_no_twin_of_what_reads_from_a_live_generator() -> None:
    assert twin_of(enumerate(n for n in range(3))) is None
    with pytest.raises(WouldMove, match="because"):
        next(Refusing("because"))


def test_the_walk_runs_no_code_of_the_users() -> None:
    called: list[str] = []

    class Loud:
        def __getattribute__(self, name: str) -> Any:
            called.append(name)
            raise RuntimeError

        def __eq__(self, other: object) -> bool:
            called.append("==")
            raise RuntimeError

        __hash__ = None  # type: ignore[assignment]

    loud = Loud()
    with restoring(touching(lambda m, x: None, loud=[loud], more={"a": loud})):
        pass
    # Gone before the fingerprint of the classes is taken apart.
    assert called == []


def test_the_walk_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmdoctor.sandbox.reach.MOST_OBJECTS", 100)
    found = Reach({"model": [[[n]] for n in range(1000)]})
    assert len(found.holders) <= 110
    assert "more than 100 objects" in found.left_out[0][1]


def test_long_containers_are_kept_and_not_looked_into() -> None:
    held = [[n] for n in range(20_000)]
    found = Reach({"data": held})
    assert len(found.holders) == 1
    assert found.left_out == [("data", "what is in its 20,000 elements")]


def test_a_file_that_is_being_iterated_over_is_not_moved(tmp_path: Any) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("1\n2\n3\n")
    with path.open() as file:
        next(file)
        made = touching(lambda m, x: None, file=file, memory=io.BytesIO(b"abc"))
        kept = restoring(made)
        with kept:
            made.model.memory.write(b"xyz")
            with pytest.raises(WouldMove):
                next(made.model.file)
        assert [at for at, _ in kept.not_kept] == ["model.file"]
        assert made.model.memory.getvalue() == b"abc"
        assert next(file) == "2\n"


def test_restoring_goes_on_past_an_error_and_raises_at_the_end() -> None:
    made = touching(lambda m, x: None, first={"a": 1}, last={"a": 1})
    kept = restoring(made)
    with pytest.raises(ZeroDivisionError), kept:
        kept._undo.insert(len(kept._undo) // 2, lambda: 1 // 0)
        made.model.first["a"] = made.model.last["a"] = 2
        made.model.block.weight.data.zero_()
    assert made.model.first == made.model.last == {"a": 1}
    assert bool(made.model.block.weight.any())
