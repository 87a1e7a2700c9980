"""What one forward pass tells: a loss, or what was raised, where, and why a rotary table did not fit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.finding import Certainty
from vlmdoctor.rules.cfg.forward_raises import forward_raises
from vlmdoctor.rules.rope.rope_table_dim import rope_table_dim
from vlmdoctor.subject import Subject

HIDDEN, HEADS, LENGTH = 32, 4, 8
HEAD_DIM = HIDDEN // HEADS


def forward_of(model: nn.Module, *inputs: torch.Tensor, **subject: object) -> Forward:
    batch = inputs or (torch.ones(2, LENGTH, HIDDEN),)
    return Gatherer(Subject(model, batch=batch, **subject))(Forward)  # type: ignore[arg-type]


def halves(dim: int, theta: float = 10000.0) -> tuple[torch.Tensor, torch.Tensor]:
    angles = angles_of(dim, theta)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()


def angles_of(dim: int, theta: float = 10000.0) -> torch.Tensor:
    return torch.outer(torch.arange(16.0), 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim))


def rotate_half(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat([-b, a], dim=-1)


class Attention(nn.Module):
    """Rotates all of q by tables of its own, made for `dim` columns."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_heads, self.hidden_size, self.head_dim = HEADS, HIDDEN, HEAD_DIM
        self.qkv = nn.Linear(HIDDEN, 3 * HIDDEN)
        self.make_tables(dim)

    def make_tables(self, dim: int) -> None:
        cos, sin = halves(dim)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def rotate(self, q: torch.Tensor) -> torch.Tensor:
        cos, sin = self.cos[:LENGTH], self.sin[:LENGTH]
        return q * cos + rotate_half(q) * sin

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, HEAD_DIM)).permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(self.rotate(q), self.rotate(k), v).square().mean()


class HalfTables(Attention):
    def make_tables(self, dim: int) -> None:
        self.register_buffer("freqs_cos", angles_of(dim).cos())
        self.register_buffer("freqs_sin", angles_of(dim).sin())

    def rotate(self, q: torch.Tensor) -> torch.Tensor:
        x1, x2 = q.chunk(2, dim=-1)
        cos, sin = self.freqs_cos[:LENGTH], self.freqs_sin[:LENGTH]
        return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], dim=-1)


class PairTables(Attention):
    def make_tables(self, dim: int) -> None:
        angles = angles_of(dim, 500000.0).repeat_interleave(2, dim=-1)
        self.tables = (angles.cos(), angles.sin())
        self.cos_cached = angles.cos()[None, None]
        self.sin_cached = angles.sin()[None, None]

    def rotate(self, q: torch.Tensor) -> torch.Tensor:
        cos, sin = self.cos_cached[:, :, :LENGTH], self.sin_cached[:, :, :LENGTH]
        turned = torch.stack([-q[..., 1::2], q[..., ::2]], dim=-1).flatten(-2)
        return q * cos + turned * sin


class ComplexTables(Attention):
    def make_tables(self, dim: int) -> None:
        angles = angles_of(dim)
        self.register_buffer("freqs_cis", torch.polar(torch.ones_like(angles), angles))

    def rotate(self, q: torch.Tensor) -> torch.Tensor:
        xq = torch.view_as_complex(q.unflatten(-1, (-1, 2)).contiguous())
        freqs_cis = self.freqs_cis[:LENGTH]
        assert freqs_cis.shape == xq.shape[-2:]
        return torch.view_as_real(xq * freqs_cis).flatten(-2)


class Frequencies(Attention):
    def make_tables(self, dim: int) -> None:
        self.register_buffer("inv_freq", 1.0 / 1e6 ** (torch.arange(0, dim, 2).float() / dim))

    def rotate(self, q: torch.Tensor) -> torch.Tensor:
        angles = torch.outer(torch.arange(LENGTH).float(), self.inv_freq)
        emb = torch.cat([angles, angles], dim=-1)
        cos, sin = emb.cos(), emb.sin()
        return q * cos + rotate_half(q) * sin


class OnTheFly(Attention):
    def make_tables(self, dim: int) -> None:
        self.rotary_dim_used = dim

    def rotate(self, q: torch.Tensor) -> torch.Tensor:
        cos, sin = halves(self.rotary_dim_used)
        return q * cos[:LENGTH] + rotate_half(q) * sin[:LENGTH]


STORED = [Attention, HalfTables, PairTables, ComplexTables, Frequencies]


@pytest.mark.parametrize("kind", STORED)
def test_tables_from_the_hidden_size_are_recognised_and_the_repair_is_proven(
    kind: Callable[[int], Attention],
) -> None:
    evidence = forward_of(kind(HIDDEN))
    assert evidence.rotary is not None
    assert (evidence.rotary.table_width, evidence.rotary.query_width) == (HIDDEN, HEAD_DIM)
    repair = evidence.rotary.repair
    assert repair is not None and repair.error is None
    assert repair.head_dim == HEAD_DIM
    (finding,) = rope_table_dim.function(evidence)
    assert finding.message.endswith("it was built from hidden_size")
    assert "inferred" not in (finding.cause or "")


@pytest.mark.parametrize("kind", STORED)
def test_the_proof_is_the_loss_of_the_really_repaired_model(kind: Callable[[int], Attention]) -> None:
    torch.manual_seed(0)
    broken = kind(HIDDEN)
    torch.manual_seed(0)
    repaired = forward_of(kind(HEAD_DIM))
    evidence = forward_of(broken)
    assert evidence.rotary is not None and evidence.rotary.repair is not None
    assert evidence.rotary.repair.loss == repaired.loss
    assert repaired.failure is None and repaired.rotary is None


def test_a_table_made_on_the_fly_is_inferred_and_says_so() -> None:
    evidence = forward_of(OnTheFly(HIDDEN))
    assert evidence.rotary is not None and evidence.rotary.repair is None
    (finding,) = rope_table_dim.function(evidence)
    assert finding.message.endswith("it was built from hidden_size")
    assert finding.proof is None and finding.certainty is Certainty.INFERRED


@pytest.mark.parametrize(
    ("dim", "words"),
    [(2 * HEAD_DIM, "twice as many"), (HEAD_DIM // 2, "half as many")],
)
def test_other_widths_are_told_apart(dim: int, words: str) -> None:
    (finding,) = rope_table_dim.function(forward_of(Attention(dim)))
    assert words in finding.message


def test_the_whole_head_where_a_part_is_rotated() -> None:
    class Partial(Attention):
        def rotate(self, q: torch.Tensor) -> torch.Tensor:
            q_rot, q_pass = q[..., : HEAD_DIM // 2], q[..., HEAD_DIM // 2 :]
            cos, sin = self.cos[:LENGTH], self.sin[:LENGTH]
            return torch.cat([q_rot * cos + rotate_half(q_rot) * sin, q_pass], dim=-1)

    assert forward_of(Partial(HEAD_DIM // 2)).failure is None
    (finding,) = rope_table_dim.function(forward_of(Partial(HEAD_DIM)))
    assert "the whole head_dim, and only a part of it is rotated" in finding.message
    assert finding.proof is not None and "the forward runs" in finding.proof.after


def test_another_clash_in_the_same_function_is_not_blamed_on_the_table() -> None:
    class Masked(Attention):
        def rotate(self, q: torch.Tensor) -> torch.Tensor:
            cos = self.cos[:LENGTH]
            return q * cos + torch.ones(5, 1)

    evidence = forward_of(Masked(HEAD_DIM))
    assert evidence.failure is not None and evidence.rotary is None
    assert list(rope_table_dim.function(evidence)) == []


class Vlm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_encoder = nn.Sequential(nn.Linear(8, 16))
        self.lm_head = nn.Linear(32, 4)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = self.vision_encoder(pixel_values)
        return self.lm_head(features).mean()


def test_a_failure_names_module_line_and_shapes() -> None:
    evidence = forward_of(Vlm(), torch.ones(2, 8))
    failure = evidence.failure
    assert failure is not None
    assert (failure.type, failure.module, failure.module_class) == ("RuntimeError", "lm_head", "Linear")
    assert failure.code == "return self.lm_head(features).mean()"
    assert failure.file is not None and failure.file.endswith("test_forward.py")
    assert {fact.name: fact.shape for fact in failure.values}["features"] == (2, 16)
    assert {fact.name: fact.shape for fact in failure.inputs}["weight"] == (4, 32)
    (finding,) = forward_raises.function(evidence)
    assert finding.at == ("lm_head (Linear)",)
    assert finding.line == failure.line


def test_a_loss_fn_that_raises_is_located_too() -> None:
    def loss_fn(model: nn.Module, batch: object) -> torch.Tensor:
        raise KeyError("labels")

    evidence = forward_of(nn.Linear(8, 2), torch.ones(2, 8), loss_fn=loss_fn)
    assert evidence.failure is not None
    assert (evidence.failure.type, evidence.failure.module) == ("KeyError", None)
    assert evidence.failure.function == "loss_fn"


def test_what_a_healthy_pass_tells() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lm_head = nn.Linear(4, 10)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.lm_head(x)
            return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}

    labels = torch.tensor([[-100, 1, 2], [-100, -100, 3]])
    subject = Subject(Head(), batch={"x": torch.ones(2, 3, 4), "labels": labels})
    evidence = Gatherer(subject)(Forward)
    assert evidence.finite is True
    assert evidence.logits_shape == (2, 3, 10)
    assert evidence.vocab_size == 10
    assert evidence.supervised_tokens == 3


def test_without_a_batch_there_is_no_evidence() -> None:
    with pytest.raises(Unavailable, match="no batch"):
        Gatherer(Subject(nn.Linear(2, 2)))(Forward)
