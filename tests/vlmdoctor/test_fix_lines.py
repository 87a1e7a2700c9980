"""The lines of a fix are run on a copy before they are printed; a finding gives the user's own line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vlmdoctor
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.probes.places import located
from vlmdoctor.proof import fix_lines
from vlmdoctor.reporters.card import card_of
from vlmdoctor.rulebook import all_rules
from vlmdoctor.subject import Subject

IMAGE = 60


class Plain(nn.Module):
    """A decoder of torch's own layers, with or without its causal mask."""

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.masked = masked
        self.emb = nn.Embedding(64, 32)
        self.blocks = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True), 2)
        self.head = nn.Linear(32, 64)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
        x = self.emb(input_ids)
        if self.masked:
            seen = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            x = self.blocks(x, mask=seen, is_causal=True)
        else:
            nothing_mask = torch.zeros(x.shape[1], x.shape[1])
            x = self.blocks(x, mask=nothing_mask)
        logits = self.head(x)
        loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return loss, logits


def line_with(text: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def made(*, masked: bool, **changes: Any) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = Plain(masked=masked)
    ids = torch.randint(0, 59, (2, 24))
    return model, {"input_ids": ids, "labels": ids.clone(), **changes}


class TestPlaces:
    def test_a_mask_is_shown_where_it_is_made_and_fixed_by_the_call_of_its_author(self) -> None:
        report = vlmdoctor.check(*made(masked=False))
        (finding,) = [f for f in report.findings if f.rule == "future-leak"]
        assert finding.file is not None and finding.file.endswith("test_fix_lines.py")
        assert finding.line == line_with("nothing_mask = torch.zeros(")
        assert finding.source == "nothing_mask = torch.zeros(x.shape[1], x.shape[1])"
        assert str(finding.certainty) == "proven"
        assert finding.fix is not None
        assert finding.fix.text == "give nn.TransformerEncoder a causal mask"
        assert finding.fix.commands[0].startswith("self.blocks(x, mask=nn.Transformer.generate_square_")
        assert vlmdoctor.check(*made(masked=True)).findings == ()

    @pytest.mark.parametrize("listed", [False, True])
    def test_the_call_is_that_of_the_class_which_holds_the_module(self, listed: bool) -> None:
        model, batch = made(masked=False)
        outer = nn.Module()
        outer.brain = nn.ModuleList([model]) if listed else model
        run = model.forward
        outer.forward = lambda input_ids, labels: run(input_ids, labels)
        if listed:
            model.parts = nn.ModuleList([model.blocks])
            del model.blocks
            object.__setattr__(model, "blocks", model.parts[0])
        report = vlmdoctor.check(outer, batch, select=["future-leak"])
        (finding,) = report.findings
        call = "encoder(x, mask=" if listed else "self.blocks(x, mask="
        assert finding.fix is not None and finding.fix.commands[0].startswith(call)

    def test_a_module_is_shown_where_it_is_called_and_labels_where_the_loss_is(self) -> None:
        model, batch = made(masked=True)
        subject = Subject(model, batch)
        findings = (
            Finding("m", Severity.ERROR, at=("head.weight",), rule="no-gradient", code="GRAD201"),
            Finding("m", Severity.ERROR, at=("labels",), rule="padding-supervised", code="LOSS302"),
            Finding("m", Severity.ERROR, at=("optimizer",), rule="o", code="OPT101"),
        )
        head, labels, other = located(findings, subject)
        assert head.line == line_with("logits = self.head(x)")
        assert labels.line == line_with("loss = nn.functional.cross_entropy(logits")
        assert (other.file, other.line) == (None, None)

    def test_a_model_of_a_library_has_no_line_and_a_failing_pass_harms_nothing(self) -> None:
        finding = Finding("m", Severity.ERROR, at=("0",), rule="r", code="NUM101")
        sequential = nn.Sequential(nn.Linear(4, 4))
        assert located((finding,), Subject(sequential, (torch.ones(1, 4),))) == (finding,)
        assert located((finding,), Subject(sequential, (torch.ones(1, 5),))) == (finding,)


def with_fix(*lines: str) -> Finding:
    return Finding(
        "m", Severity.ERROR, at=("labels",), fix=Fix("do", lines), rule="nothing-supervised", code="LOSS301"
    )


class TestFixLines:
    @pytest.fixture
    def subject(self) -> Subject:
        model, batch = made(masked=True)
        batch["labels"].fill_(-100)
        return Subject(model, batch, optimizer=torch.optim.AdamW(model.parameters()))

    def tried(self, subject: Subject, *lines: str) -> Fix:
        rules = [rule for rule in all_rules() if rule.name == "nothing-supervised"]
        (finding,) = fix_lines.tried([with_fix(*lines)], subject, rules, "steps", lambda: True)
        assert finding.fix is not None
        return finding.fix

    def test_lines_that_help_are_marked(self, subject: Subject) -> None:
        assert self.tried(subject, "labels = input_ids.clone()").tried
        assert self.tried(subject, 'batch["labels"] = batch["input_ids"]').tried
        assert bool((subject.batch["labels"] == -100).all()), "the user's batch was changed"

    def test_lines_that_run_and_do_not_help_are_a_pattern(self, subject: Subject) -> None:
        fix = self.tried(subject, "model.requires_grad_(True)")
        assert (fix.tried, len(fix.commands)) == (False, 1)

    @pytest.mark.parametrize(
        "line",
        ["labels[:, 1000] = 3", "model.vision_proj.requires_grad_(True)", "batch['pixels'] = 1 / 0"],
    )
    def test_lines_that_raise_are_not_printed(self, subject: Subject, line: str) -> None:
        assert self.tried(subject, line) == Fix("do")

    @pytest.mark.parametrize(
        "line",
        [
            "x = mask_of(x)",
            "SFTConfig(..., assistant_only_loss=True)",
            "model.vision.load_state_dict(pretrained)",
            "import os; os.remove('x')",
            "__import__('os').remove('x')",
            "open('x', 'w')",
            "torch.save(model, 'x')",
            "torch.hub.load('x', 'y')",
            "model.__class__.__init__.__globals__",
            "(lambda: 1)()",
            "while True: pass",
            "for (",
        ],
    )
    def test_lines_with_other_names_are_not_run(
        self, subject: Subject, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        fix = self.tried(subject, line)
        assert (fix.tried, fix.commands) == (False, (line,))
        assert list(tmp_path.iterdir()) == []

    def test_commands_of_the_shell_are_not_run(self, subject: Subject) -> None:
        assert self.tried(subject, "pip install torch").commands == ("pip install torch",)

    def test_a_card_says_which_they_are(self) -> None:
        rows = dict(card_of(with_fix("x = f(x)")).rows)
        assert rows["fix"] == "do (pattern, names may differ):\n  x = f(x)"
        finding = Finding("m", Severity.ERROR, fix=Fix("do:", ("x = 1",), tried=True))
        assert dict(card_of(finding).rows)["fix"] == "do (tried on a copy):\n  x = 1"
        assert dict(card_of(with_fix("pip install x")).rows)["fix"] == "do\n  pip install x"
