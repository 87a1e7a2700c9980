"""Healthy models of one's own: padding that the loss leaves out in its own way, rounding, images of rows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import vlmdoctor
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.named_parts import naming
from vlmdoctor.knowledge.parameter_names import role_of
from vlmdoctor.look.samples import looks_of
from vlmdoctor.probes.model.named import known_parts
from vlmdoctor.proof.own_words import in_own_api
from vlmdoctor.report import Report

PADDING, WORDS, WIDTH = 0, 60, 32
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Speller(nn.Module):
    """Crosses from text to image features; rows of several lengths, no attention mask, labels one ahead."""

    def __init__(self, loss: Loss, *, detached: bool = False) -> None:
        super().__init__()
        self.see = nn.Conv2d(1, WIDTH, 7, 7)
        self.words = nn.Embedding(WORDS, WIDTH)
        layer = nn.TransformerDecoderLayer(WIDTH, 2, 64, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 1)
        self.say = nn.Linear(WIDTH, WORDS)
        self.loss, self.detached = loss, detached

    def forward(self, picture: torch.Tensor, text: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
        seen = self.see(picture).flatten(2).transpose(1, 2)
        if self.detached:
            seen = seen.detach()
        mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
        return self.loss(self.say(self.decoder(self.words(text), seen, tgt_mask=mask)), answer)


def ignoring(logits: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.transpose(1, 2), answer, ignore_index=PADDING)


def masking(logits: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    each = functional.cross_entropy(logits.transpose(1, 2), answer, reduction="none")
    counted = (answer != PADDING).float()
    return (each * counted).sum() / counted.sum()


def choosing(logits: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits[answer != PADDING], answer[answer != PADDING])


def counting(logits: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.transpose(1, 2), answer)


def masking_nothing(logits: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits.transpose(1, 2), answer, reduction="none").mean()


def examined(loss: Loss, **options: bool) -> Report:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Speller(loss, **options)
        text = torch.randint(3, WORDS, (4, 15))
        picture = torch.rand(4, 1, 28, 28)
    for row, length in enumerate((15, 11, 8, 13)):
        text[row, length:] = PADDING
    batch = {"picture": picture, "text": text[:, :-1], "answer": text[:, 1:]}
    report = vlmdoctor.check(model, batch, torch.optim.Adam(model.parameters(), lr=1e-3))
    assert report.crashed == ()
    return report


@pytest.mark.parametrize("loss", [ignoring, masking, choosing])
def test_padding_that_the_loss_leaves_out_is_not_supervised(loss: Loss) -> None:
    assert examined(loss).findings == ()


@pytest.mark.parametrize("loss", [counting, masking_nothing])
def test_padding_that_the_loss_counts_is_found(loss: Loss) -> None:
    assert [finding.rule for finding in examined(loss).findings] == ["padding-supervised"]


def test_the_line_that_is_shown_is_the_line_of_the_number() -> None:
    cut = next(f for f in examined(ignoring, detached=True).findings if f.rule == "no-gradient")
    assert cut.source == "seen = seen.detach()"


def test_the_fix_names_what_the_batch_has() -> None:
    fix = examined(counting).findings[0].fix
    assert fix is not None
    assert fix.commands == ("answer[answer == 0] = -100",)


def test_images_that_are_dropped_by_a_model_without_placeholders() -> None:
    class Blind(Speller):
        def forward(self, picture: torch.Tensor, text: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
            hook = self.see.register_forward_hook(lambda module, given, output: output * 0)
            try:
                return super().forward(picture, text, answer)
            finally:
                hook.remove()

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Blind(ignoring)
        batch = {
            "picture": torch.rand(4, 1, 28, 28),
            "text": torch.randint(3, WORDS, (4, 9)),
            "answer": torch.randint(3, WORDS, (4, 9)),
        }
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    (found,) = vlmdoctor.check(model, batch, optimizer).findings  # weights with a gradient of rounding stay
    assert found.rule == "image-without-effect"
    assert found.fix is not None
    assert "placeholder" not in found.fix.text
    assert "to the language model" in found.fix.text


class Rounded(nn.Module):
    """A layer whose last digits differ from call to call, as those of parallel products do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear, self.calls = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), 0

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(self.norm(values)) * (1 + self.calls % 3 * 2e-7)


def test_rounding_is_no_effect_of_the_text() -> None:
    class Jittery(Speller):
        def __init__(self) -> None:
            super().__init__(ignoring)
            self.see = nn.Sequential(nn.Conv2d(1, WIDTH, 7, 7), nn.Flatten(2))
            self.blocks = nn.Sequential(Rounded(), Rounded())
            self.link = nn.Linear(WIDTH, WIDTH)

        def forward(self, picture: torch.Tensor, text: torch.Tensor, answer: torch.Tensor) -> torch.Tensor:
            seen = self.link(self.blocks(self.see(picture).transpose(1, 2)))
            mask = nn.Transformer.generate_square_subsequent_mask(text.shape[1])
            return self.loss(self.say(self.decoder(self.words(text), seen, tgt_mask=mask)), answer)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Jittery()
        batch = {
            "picture": torch.rand(4, 1, 28, 28),
            "text": torch.randint(3, WORDS, (4, 9)),
            "answer": torch.randint(3, WORDS, (4, 9)),
        }
    subject = vlmdoctor.Subject(model=model, batch=batch)
    with naming(known_parts(subject)):
        roles = {name: role_of(f"{name}.weight") for name in ("see.0", "blocks.0.linear", "link", "decoder")}
    assert roles == {
        "see.0": "vision",
        "blocks.0.linear": "vision",
        "link": "projector",
        "decoder": "language",
    }


def test_images_that_no_text_places_belong_to_their_rows() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, text = Speller(ignoring), torch.randint(3, WORDS, (4, 9))
        batch = {"picture": torch.rand(4, 1, 28, 28), "text": text[:, :-1], "answer": text[:, 1:]}
    looks, _ = looks_of(vlmdoctor.Subject(model=model, batch=batch), 4)
    assert [len(look.images) for look in looks] == [1, 1, 1, 1]


@pytest.mark.parametrize(("normed", "rules"), [(True, []), (False, ["pixel-range"])])
def test_pixels_of_any_scale_before_a_norm(normed: bool, rules: list[str]) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, text = Speller(ignoring), torch.randint(3, WORDS, (4, 9))
        norm = nn.BatchNorm2d(WIDTH) if normed else nn.Identity()
        model.see = nn.Sequential(model.see, norm, nn.ReLU())
        picture = torch.randint(0, 256, (4, 1, 28, 28)).float()
    report = vlmdoctor.check(model, {"picture": picture, "text": text[:, :-1], "answer": text[:, 1:]})
    assert [finding.rule for finding in report.findings] == rules


def test_the_rate_of_a_trainer_is_a_setting() -> None:
    @dataclass
    class Settings:
        learning_rate: float = 3e-2

    line = "optimizer = torch.optim.AdamW(model.parameters(), lr=1e-03)"
    finding = Finding("m", Severity.WARNING, fix=Fix("lower it", (line,)))
    model = nn.Linear(1, 1)
    found = in_own_api([finding], vlmdoctor.Subject(model=model, training_args=Settings()))[0].fix
    assert found is not None and found.commands == ("Settings(..., learning_rate=1e-03)",)
    assert in_own_api([finding], vlmdoctor.Subject(model=model)) == (finding,)
    # The line that ran on the copy is another one.
    ran = Finding("m", Severity.WARNING, fix=Fix("lower it", (line,), tried=True))
    found = in_own_api([ran], vlmdoctor.Subject(model=model, training_args=Settings()))[0].fix
    assert found is not None and not found.tried
    assert in_own_api([ran], vlmdoctor.Subject(model=model)) == (ran,)


def test_a_contract_names_the_parts_that_are_measured(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import torch\nfrom test_hand_written_healthy import Speller, ignoring\n"
        "def build():\n"
        "    text = torch.randint(3, 60, (4, 9))\n"
        "    batch = {'picture': torch.rand(4, 1, 28, 28), 'text': text[:, :-1], 'answer': text[:, 1:]}\n"
        "    return Speller(ignoring), batch\n"
    )
    command = [sys.executable, "-m", "vlmdoctor", "init", "mine.py:build", "--dry-run"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert {line.split(" ")[0] for line in shown.splitlines()[1:]} >= {"vision", "language", "head"}
