"""roles, image_token_id and labels_name: in Python, in watch, in pyproject.toml, and values of no use."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hand_written_models import IMAGE, LABELS, Scattered, prepended, scattered

import vlmdoctor
from vlmdoctor import settings
from vlmdoctor.errors import UserError
from vlmdoctor.knowledge.named_parts import current
from vlmdoctor.look.samples import looks_of
from vlmdoctor.probes.model.landing import padding_of
from vlmdoctor.reporters.full import render


def made(*faults: str):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return scattered(faults)


def test_roles_that_are_given_win() -> None:
    subject = made()
    subject.roles = {"projector": "vision", "vision": ["mlp"]}
    seen = vlmdoctor.check(subject, depth="forward").facts
    assert seen["parts"]["projector"] == "vision (given)"
    assert seen["parts"]["vision"] == "mlp (given)"
    assert seen["contract"]["seen"]["projector"] == "frozen"


def test_what_was_measured_is_shown_to_who_asks_for_more() -> None:
    report = vlmdoctor.check(made(), depth="forward")
    plain = render(report, color=False, verbose=True, quiet=False, width=100)
    assert any(line.split() == ["part", "projector", "mlp", "(measured)"] for line in plain.splitlines())
    assert "(measured)" not in render(report, color=False, verbose=False, quiet=False, width=100)


def test_given_roles_hold_without_a_pass() -> None:
    subject = made()
    report = vlmdoctor.check(
        subject.model, subject.batch, optimizer=subject.optimizer, roles={"projector": "mlp"}, depth="static"
    )
    assert report.facts["parts"] == {"projector": "mlp (given)"}
    assert report.facts["contract"]["seen"]["projector"] == "train, lr 0.001"


def test_the_image_token_that_is_given_counts() -> None:
    subject = made(LABELS)
    found = vlmdoctor.check(
        subject.model, subject.batch, optimizer=subject.optimizer, image_token_id=IMAGE, depth="static"
    ).findings
    assert [finding.rule for finding in found] == ["image-tokens-supervised"]


def test_labels_of_any_name() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        subject = prepended()
    subject.batch["gold"] = subject.batch.pop("targets").clone()
    subject.batch["gold"][:, 10:] += 10**6
    inner = subject.loss_fn
    subject.loss_fn = lambda model, batch: inner(model, {**batch, "targets": batch["gold"] % 64})
    subject.labels_name = "gold"
    report = vlmdoctor.check(subject, depth="static")
    assert "labels-of-another-row" in report.ran
    assert "labels" in report.facts["parts"]


def test_nothing_stays_in_force() -> None:
    subject = made()
    subject.roles = {"projector": "mlp"}
    vlmdoctor.check(subject, depth="static")
    assert current().roles == ()


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"roles": "mlp"}, "roles must be a table"),
        ({"roles": {"projektor": "mlp"}}, "did you mean 'projector'"),
        ({"roles": {"other": "mlp"}}, "choose from vision, projector, language, head"),
        ({"roles": {"projector": 3}}, "a name or a list of names"),
        ({"roles": {"projector": []}}, "a name or a list of names"),
        ({"roles": {"projector": "mpl"}}, "'mpl' (projector) matches no parameter or module of Scattered"),
        ({"image_token_id": "60"}, "image_token_id must be a token id"),
        ({"image_token_id": True}, "image_token_id must be a token id"),
        ({"image_token_id": -1}, "image_token_id must be a token id"),
        ({"labels_name": 3}, "labels_name must be a name"),
    ],
)
def test_what_is_no_use_is_one_sentence(said: dict, words: str) -> None:
    subject = made()
    with pytest.raises(UserError) as raised:
        vlmdoctor.check(subject.model, subject.batch, **said)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=re.escape(words)):
        vlmdoctor.watch(subject.model, **said)


def test_labels_that_the_batch_lacks() -> None:
    subject = made()
    with pytest.raises(UserError, match="the batch has no 'gold'; it has input_ids, pixel_values, labels"):
        vlmdoctor.check(subject.model, subject.batch, labels_name="gold")


def test_watch_sums_by_the_roles_that_are_given() -> None:
    subject = made()
    with vlmdoctor.watch(subject.model, subject.optimizer, every=1, roles={"projector": "mlp"}) as watcher:
        subject.model(**subject.batch)[1].backward()
        subject.optimizer.step()
    parameters, steps = watcher.evidence()
    assert "projector" in steps.steps[0].role_grad_norms
    assert {p.name for p in parameters.role("projector")} == {"mlp.weight", "mlp.bias"}


def test_watch_counts_labels_of_another_name() -> None:
    class Named(Scattered):
        def forward(self, input_ids, pixel_values, gold):
            return super().forward(input_ids, pixel_values, gold)[1]

    model, subject = Named(), made()
    batch = dict(subject.batch)
    batch["gold"] = batch.pop("labels")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with vlmdoctor.watch(model, optimizer, every=1, labels_name="gold") as watcher:
        model(**batch).backward()
        optimizer.step()
    assert watcher.evidence()[1].steps[0].supervised_tokens == int((batch["gold"] != -100).sum())


def test_look_gives_each_row_its_image() -> None:
    looks, _ = looks_of(made(), 4)
    assert [len(look.images) for look in looks] == [1, 1, 1, 1]
    folded = [
        token for look in looks for turn in look.turns for token in turn.tokens if token.role == "image"
    ]
    assert [(token.id, token.count) for token in folded] == [(IMAGE, 4)] * 4


def test_look_at_features_in_front() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        looks, _ = looks_of(prepended(), 4)
    assert [len(look.images) for look in looks] == [1, 1, 1, 1]


def test_padding_by_mask_and_by_ends() -> None:
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0], [5, 0, 0, 0]])
    assert padding_of(ids, None) == 0
    assert padding_of(ids, ids != 0) == 0
    assert padding_of(torch.tensor([[5, 6, 7, 2], [5, 6, 8, 2]]), None) is None  # ends each row once
    assert padding_of(torch.tensor([[2, 6, 7, 8], [5, 6, 2, 2]]), None) is None  # also within a row
    assert (
        padding_of(torch.tensor([[0, 0, 7, 8], [5, 6, 7, 8]]), torch.tensor([[0, 0, 1, 1], [1] * 4]) > 0) == 0
    )


def _settings(folder: Path, text: str) -> settings.Settings:
    (folder / "pyproject.toml").write_text(f"[tool.vlmdoctor]\n{text}\n")
    return settings.load(folder)


def test_pyproject(tmp_path: Path) -> None:
    known = _settings(tmp_path, 'roles = {projector = "mlp"}\nimage-token-id = 60\nlabels_name = "gold"')
    assert (known.roles, known.image_token_id, known.labels_name) == ({"projector": ("mlp",)}, 60, "gold")


@pytest.mark.parametrize(
    "text", ['roles = "mlp"', 'roles = {eyes = "x"}', 'image-token-id = "60"', "labels-name = 3"]
)
def test_pyproject_that_makes_no_sense(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"pyproject\.toml"):
        _settings(tmp_path, text)


def test_the_command_line_ends_with_status_2(tmp_path: Path) -> None:
    here = Path(__file__).parent
    (tmp_path / "pyproject.toml").write_text('[tool.vlmdoctor]\nroles = {projector = "mpl"}\n')
    (tmp_path / "own.py").write_text(
        f"import sys\nsys.path.insert(0, {str(here)!r})\nfrom hand_written_models import scattered as build\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "vlmdoctor", "check", "own.py:build"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert "'mpl' (projector) matches no parameter or module of Scattered." in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_measurement_that_fails_ends_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("vlmdoctor.probes.model.wiring.probe", fails)
    model = torch.nn.Linear(2, 2)
    report = vlmdoctor.check(model, (torch.ones(1, 2),))
    assert report.ran
    assert {reason for _, reason in report.crashed} == {"MemoryError: no room"}
