"""How a model behaves: what its loss is made of, whether a batch can be learned, whether its cache agrees."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_vlm
import torch
from families import decoder
from torch import Tensor, nn
from torch.nn import functional as F

import vlmdoctor
from benchmarks.detection.corpus import by_name
from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.influence import Influence
from vlmdoctor.evidence.loss_form import LossForm
from vlmdoctor.evidence.overfit import Overfit, Try, runs_away
from vlmdoctor.report import Report
from vlmdoctor.subject import Subject


class Losses(tiny_vlm.TinyVLM):
    """A small VLM whose loss is made in a given way of what is predicted."""

    def __init__(self, make: Callable[[Tensor, Tensor], Tensor], *, head: Any = None) -> None:
        super().__init__()
        self.make, self.head = make, head or (lambda logits: logits)

    def forward(self, input_ids: Tensor, labels: Tensor, pixel_values: Tensor | None = None) -> Any:
        made = super().forward(input_ids, labels, pixel_values)
        logits = self.head(made.logits)
        return SimpleNamespace(loss=self.make(logits[:, :-1], labels[:, 1:]), logits=logits)


def mean(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x.flatten(0, 1), y.flatten())


def each(x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(x.transpose(1, 2), y, reduction="none")


def per_row(x: Tensor, y: Tensor) -> Tensor:
    return (each(x, y).sum(1) / (y != -100).sum(1)).mean()


class Fused(torch.autograd.Function):
    """Makes its gradient in `forward` and hands it on as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            loss = mean(x, y)
            (gradient,) = torch.autograd.grad(loss, x)
        ctx.save_for_backward(gradient)
        return loss.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return ctx.saved_tensors[0], None


def checked(model: nn.Module, batch: Any = None, **given: Any) -> Report:
    report = vlmdoctor.check(model, batch or tiny_vlm.batch(0), **given)
    assert report.crashed == ()
    return report


def form_of(model: nn.Module, batch: Any = None) -> LossForm:
    return Gatherer(Subject(model, batch=batch or tiny_vlm.batch(0)))(LossForm)


def names(report: Report) -> list[str]:
    return [finding.rule for finding in report.findings]


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda x, y: F.cross_entropy(x.flatten(0, 1), y.flatten(), reduction="sum"), "loss-summed"),
        (lambda x, y: each(x, y).mean(), "masked-tokens-in-mean"),
        (per_row, "nan-without-an-answer"),
        (lambda x, y: mean(x[:1], y[:1]), "rows-not-in-loss"),
        (lambda x, y: Fused.apply(x, y), "gradient-not-scaled"),
        (lambda x, y: -mean(x, y), "loss-negated"),
    ],
)
def test_what_is_wrong_with_a_loss(make: Callable[[Tensor, Tensor], Tensor], rule: str) -> None:
    assert names(checked(Losses(make), depth="backward", select=[rule])) == [rule]


@pytest.mark.parametrize(
    "make",
    [
        mean,
        lambda x, y: mean(x, y) / 4,  # for accumulation
        lambda x, y: F.cross_entropy(x.flatten(0, 1), y.flatten(), label_smoothing=0.1),
        lambda x, y: F.nll_loss(x.log_softmax(-1).flatten(0, 1), y.flatten()),
        lambda x, y: (each(x, y).sum(1) / (y != -100).sum(1).clamp(min=1)).mean(),
        lambda x, y: mean(x, y) + 1e-4 * x.logsumexp(-1).square().mean(),
        lambda x, y: mean(x, y) + 0.01 * x.new_zeros(()),
    ],
)
def test_losses_of_other_forms_are_left_alone(make: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert names(checked(Losses(make), depth="backward")) == []


def test_softmax_in_the_head() -> None:
    model = Losses(mean, head=lambda logits: logits.softmax(-1))
    (finding,) = checked(model, depth="backward", select=["probabilities-as-logits"]).findings
    floor = math.log(math.e + tiny_vlm.VOCABULARY - 1) - 1
    assert finding.threshold["lowest_possible_loss"] == pytest.approx(floor)
    perfect = torch.eye(tiny_vlm.VOCABULARY)
    assert float(F.cross_entropy(perfect, torch.arange(len(perfect)))) == pytest.approx(floor, rel=1e-5)


def test_log_probabilities_from_the_head_are_fine() -> None:
    assert names(checked(Losses(mean, head=lambda logits: logits.log_softmax(-1)), depth="backward")) == []


def test_weights_are_those_of_the_loss() -> None:
    batch = tiny_vlm.batch(0, 3)
    batch["labels"][1, :-1] = -100  # one label in this row, three in the others
    weights = form_of(Losses(per_row), batch).weights
    assert weights.rows == (3, 1, 3) and weights.tokens == 7
    assert weights.lightest == pytest.approx(1 / 9, rel=1e-3)
    assert weights.heaviest == pytest.approx(1 / 3, rel=1e-3)
    assert weights.total == pytest.approx(1.0, rel=1e-3) and weights.residual < 1e-4


def test_a_row_that_is_known_by_heart_is_not_missed() -> None:
    model, batch = Losses(mean), tiny_vlm.batch(0, 2)

    def sure(logits: Tensor) -> Tensor:
        known = F.one_hot(batch["input_ids"].roll(-1, 1), logits.shape[-1]) * 200.0
        return torch.cat([logits[:1], logits[1:2] * 0 + known[1:2], logits[2:]])

    model.head = sure
    form = form_of(model, batch)
    assert form.weights.rows[1] == 0 and 1 in form.sure_of
    assert "rows-not-in-loss" not in names(checked(model, batch, depth="backward"))


@pytest.mark.parametrize("rate", [30.0, 3000.0])
def test_a_rate_that_runs_away_is_lowered(rate: float) -> None:
    model = tiny_vlm.TinyVLM()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    report = checked(model, optimizer=optimizer, select=["loss-runs-away"])
    (finding,) = report.findings
    assert finding.proof is not None and finding.proof.works
    assert f"instead of {rate:.3g}" in finding.proof.tried
    assert optimizer.param_groups[0]["lr"] == rate


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_moderate_and_tiny_rates_do_not_run_away(optimizer: Any) -> None:
    for rate in (1e-2, 1e-7):
        model = tiny_vlm.TinyVLM()
        given = optimizer(model.parameters(), lr=rate)
        assert names(checked(model, optimizer=given, select=["loss-runs-away", "batch-not-learned"])) == []


def test_labels_that_change_with_each_call_can_not_be_learned() -> None:
    def anew(x: Tensor, y: Tensor) -> Tensor:
        labels = torch.randint(3, 95, y.shape)
        return mean(x, labels.where(y != -100, -100))

    model = Losses(anew)
    torch.manual_seed(1)
    report = checked(model, select=["batch-not-learned"])
    assert names(report) == ["batch-not-learned"]


def test_no_steps_of_our_own_where_the_given_optimizer_learns() -> None:
    model = tiny_vlm.TinyVLM()
    overfit = Gatherer(Subject(model, batch=tiny_vlm.batch(0), optimizer=tiny_vlm.adamw(model)))(Overfit)
    assert overfit.users is not None and overfit.users.learned and overfit.ours == ()
    without = Gatherer(Subject(model, batch=tiny_vlm.batch(0)))(Overfit)
    assert without.users is None and without.learns is not None


@pytest.mark.parametrize(
    ("losses", "away"),
    [
        ((5.0, 4.0, 3.0), False),
        ((5.0, 9.0, 6.0), False),
        ((5.0, 900.0, 4.99), True),
        ((5.0, 900.0, 3.0), False),
        ((5.0, 30.0), True),
        ((5.0, math.nan), True),
        ((5.0,), False),
    ],
)
def test_what_counts_as_running_away(losses: tuple[float, ...], away: bool) -> None:
    assert runs_away(Try(rate=1.0, losses=losses)) is away


class Cached(nn.Module):
    """A hand-written decoder with a cache of keys and values, and learned positions."""

    def __init__(self, *, offset: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.offset = offset
        self.embed_tokens, self.wpe = nn.Embedding(97, 32), nn.Embedding(64, 32)
        self.qkv, self.out, self.lm_head = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 97)

    def forward(
        self, input_ids: Tensor, labels: Tensor | None = None, past: Any = None, use_cache: bool = False
    ) -> Any:
        before = past[0].shape[1] if past is not None and self.offset else 0
        x = self.embed_tokens(input_ids)
        x = x + self.wpe(torch.arange(before, before + input_ids.shape[1]))
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if past is not None:
            k, v = torch.cat([past[0], k], 1), torch.cat([past[1], v], 1)
        mask = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool).tril(k.shape[1] - q.shape[1])
        logits = self.lm_head(x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask)))
        loss = None if labels is None else mean(logits[:, :-1], labels[:, 1:])
        return SimpleNamespace(loss=loss, logits=logits, past=(k, v) if use_cache else None)


def text() -> dict[str, Tensor]:
    ids = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": ids.clone()}


@pytest.mark.parametrize("offset", [True, False])
def test_a_cache_of_ones_own(offset: bool) -> None:
    found = names(checked(Cached(offset=offset), text(), select=["cache-disagrees"]))
    assert found == ([] if offset else ["cache-disagrees"])


@pytest.mark.parametrize("fault", [False, True])
def test_the_cache_of_transformers(fault: bool) -> None:
    model, batch = decoder("llama")
    if fault:
        rotary = model.model.rotary_emb
        plain = type(rotary).forward
        rotary.__class__ = type(
            "LlamaRotaryEmbedding",
            (type(rotary),),
            {"forward": lambda self, x, position_ids: plain(self, x, position_ids - position_ids[..., :1])},
        )
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes = [sorted(vars(module)) for module in model.modules()]
    stops, drawn = model.generation_config.to_dict(), torch.get_rng_state()
    report = checked(model, batch, select=["cache-disagrees"])
    assert names(report) == (["cache-disagrees"] if fault else [])
    assert "cache-disagrees" in report.ran
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert attributes == [sorted(vars(module)) for module in model.modules()]
    assert model.generation_config.to_dict() == stops and torch.equal(torch.get_rng_state(), drawn)


def test_a_model_without_a_cache_is_skipped() -> None:
    influence = Gatherer(Subject(tiny_vlm.TinyVLM(), batch=tiny_vlm.batch(0)))(Influence)
    with pytest.raises(Unavailable, match="takes no cache"):
        influence.of("cache")


def test_a_checkpoint_is_loaded_under_the_names_that_fit() -> None:
    trained = tiny_vlm.TinyVLM()
    optimizer = tiny_vlm.adamw(trained, 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        trained(**tiny_vlm.batch(0)).loss.backward()
        optimizer.step()
    checkpoint = {f"model.{name}": t.detach().clone() for name, t in trained.state_dict().items()}
    torch.manual_seed(5)
    model = tiny_vlm.TinyVLM()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.02)
    before = float(model(**tiny_vlm.batch(0)).loss.detach())
    (finding,) = checked(model, checkpoint=checkpoint, select=["checkpoint-not-loaded"]).findings
    assert finding.proof is not None and finding.proof.works
    assert "with 'model.' removed" in finding.proof.tried
    after = float(trained(**tiny_vlm.batch(0)).loss.detach())
    assert f"the loss goes from {before:.4g} to {after:.4g}" in finding.proof.tried


class WrittenOut(nn.Module):
    """Attention as formulas, through one of the ways to a softmax; without a causal mask."""

    def __init__(self, softmax: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.softmax = softmax
        self.embed_tokens, self.qkv, self.lm_head = nn.Embedding(97, 32), nn.Linear(32, 96), nn.Linear(32, 97)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        x = self.embed_tokens(input_ids)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        logits = self.lm_head(x + self.softmax(q @ k.transpose(1, 2) / 32**0.5) @ v)
        return SimpleNamespace(loss=mean(logits[:, :-1], labels[:, 1:]), logits=logits)


@pytest.mark.parametrize(
    "softmax",
    [
        lambda scores: scores.softmax(-1),
        lambda scores: torch.softmax(scores, dim=-1),
        lambda scores: F.softmax(scores, dim=-1),
    ],
)
def test_a_leak_in_attention_that_is_written_out_is_proven(softmax: Callable[[Tensor], Tensor]) -> None:
    ways = F.softmax, torch.softmax, torch.Tensor.softmax, "softmax" in vars(torch.Tensor)
    report = checked(WrittenOut(softmax), text(), select=["future-leak"])
    assert (F.softmax, torch.softmax, torch.Tensor.softmax, "softmax" in vars(torch.Tensor)) == ways
    (finding,) = report.findings
    assert finding.proof is not None and finding.proof.after == "max logit change 0"


def test_a_head_that_is_applied_to_no_token_crashes_no_rule() -> None:
    case = by_name()["D02-every-label-masked/minivlm"]
    report = vlmdoctor.check(case.make(), depth="backward")
    assert report.crashed == ()
    assert [finding.rule for finding in report.findings] == ["nothing-supervised"]
