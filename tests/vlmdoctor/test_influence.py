"""Faults that show only when the input is changed, planted in real small models, with their causes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers as hf
from families import IMAGE, TEXT, build, tokens
from tiny_vlm import TinyVLM
from tiny_vlm import batch as tiny_batch
from torch import Tensor, nn
from torch.nn import functional as F

import vlmdoctor
from vlmdoctor.engine import Gatherer
from vlmdoctor.evidence.influence import Influence
from vlmdoctor.finding import Finding
from vlmdoctor.subject import Subject

FORWARD = {"depth": "forward"}


def only(model: Any, batch: Any, **given: Any) -> Finding:
    """The one finding on a model."""
    report = vlmdoctor.check(model, batch, **FORWARD, **given)
    assert report.crashed == ()
    assert len(report.findings) == 1, [f.message for f in report.findings]
    return report.findings[0]


def found(model: Any, batch: Any, **given: Any) -> set[str]:
    report = vlmdoctor.check(model, batch, **FORWARD, **given)
    assert report.crashed == ()
    return {finding.rule for finding in report.findings}


class RotaryDecoder(nn.Module):
    """A hand-written decoder with rotary tables, whose mask and rotation can be broken."""

    def __init__(self, *, fault: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fault, self.heads = fault, 4
        self.embed_tokens, self.lm_head = nn.Embedding(97, 32), nn.Linear(32, 97)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.norm = nn.LayerNorm(32)
        angles = torch.outer(torch.arange(64).float(), 1e4 ** (-torch.arange(0, 8, 2).float() / 8))
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin())

    def rotate(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        turned = torch.cat([-second, first], dim=-1)
        if self.fault == "pairs":
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).flatten(-2)
        length = x.shape[-2]
        return x * self.cos[:length] + turned * self.sin[:length]

    def forward(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> Any:
        x = self.embed_tokens(input_ids)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q = self.rotate(q)
        if self.fault != "only q":
            k = self.rotate(k)
        if self.fault == "k twice":
            k = self.rotate(k)
        length = x.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        if self.fault == "no mask":
            mask = torch.ones_like(mask)
        if self.fault == "inverted":
            mask = ~mask | torch.eye(length, dtype=torch.bool)
        if self.fault == "next token":
            mask = torch.ones(length, length, dtype=torch.bool).tril(1)[None, None]
        if attention_mask is not None:
            if self.fault != "padding ignored":
                mask = mask & attention_mask[:, None, None, :].bool() | torch.eye(length, dtype=torch.bool)
            if self.fault == "padding for causal":
                mask = attention_mask[:, None, None, :].bool()
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))
        if self.fault == "batch mean":
            x = x - x.mean(dim=0)
        logits = self.lm_head(x)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return SimpleNamespace(loss=loss, logits=logits)


def left_padded(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    batch["attention_mask"][1, :5] = 0
    batch["input_ids"][1, :5] = 0
    batch["labels"][1, :5] = -100
    return batch


@pytest.mark.parametrize("fault", ["no mask", "inverted", "next token", "padding for causal"])
def test_the_future_is_seen_in_a_hand_written_model(fault: str) -> None:
    finding = only(RotaryDecoder(fault=fault), tokens(0))
    assert finding.rule == ("mask-inverted" if fault == "inverted" else "future-leak")
    assert finding.at[0] == "the input of out"
    assert finding.proof is not None and finding.proof.after == "max logit change 0"


@pytest.mark.parametrize("family", ["llama", "llava", "qwen2_vl", "gpt2", "mixtral"])
def test_the_future_is_seen_in_transformers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = hf.modeling_utils.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
    ) -> Any:
        if not getattr(module, "is_causal", True):
            return whole(module, query, key, value, attention_mask, **options)
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).contiguous(), None

    monkeypatch.setitem(hf.modeling_utils.ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", attend)
    model, batch = build(family)
    finding = only(model, batch)
    assert finding.rule == "future-leak"
    assert "attn" in finding.at[0]
    assert finding.proof is not None


def test_an_encoder_trained_as_a_decoder() -> None:
    config = hf.BertConfig(**TEXT, is_decoder=False)
    finding = only(hf.BertLMHeadModel(config), tokens(0))
    assert (finding.rule, finding.fix.commands) == ("future-leak", ("config.is_decoder = True",))
    assert found(hf.BertLMHeadModel(hf.BertConfig(**TEXT, is_decoder=True)), tokens(0)) == set()


def test_a_paligemma_whose_answer_is_taken_for_the_prompt() -> None:
    model, batch = build("paligemma")
    batch["labels"][:, :10] = -100
    batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])
    report = vlmdoctor.check(model, batch, **FORWARD)
    assert [finding.rule for finding in report.findings] == ["token-types"]
    assert any("no causal mask" in symptom for symptom in report.findings[0].symptoms)


def test_a_prompt_may_look_ahead() -> None:
    model, batch = build("paligemma")
    batch["labels"][:, :10] = -100
    batch["token_type_ids"][:, :10] = 0
    assert "future-leak" not in found(model, batch)


def test_masked_language_models_may_look_ahead() -> None:
    batch = tokens(0)
    batch["labels"][:, ::3] = -100
    batch["input_ids"][:, 1::3] = 90
    assert found(hf.BertForMaskedLM(hf.BertConfig(**TEXT)), batch) == set()
    assert found(RotaryDecoder(fault="no mask"), batch) == set()


@pytest.mark.parametrize("fault", ["only q", "pairs"])
def test_rotary_positions_that_are_not_relative(fault: str) -> None:
    finding = only(RotaryDecoder(fault=fault), tokens(0))
    assert finding.rule == "rotary-not-relative"
    assert finding.at == ("cos", "sin")


def test_keys_that_are_rotated_twice_are_the_cause_of_what_is_not_relative() -> None:
    finding = only(RotaryDecoder(fault="k twice"), tokens(0))
    assert finding.rule == "rotated-twice"
    assert len(finding.symptoms) == 1 and "absolute positions" in finding.symptoms[0]


@pytest.mark.parametrize("family", ["llama", "qwen3", "neox", "idefics3"])
def test_only_q_is_rotated_in_transformers(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = build(family)
    for module in {type(m).__module__ for m in model.modules()}:
        module = __import__(module, fromlist=["x"])
        if rotate := getattr(module, "apply_rotary_pos_emb", None):
            monkeypatch.setattr(
                module, "apply_rotary_pos_emb", lambda q, k, *rest, rotate=rotate: (rotate(q, k, *rest)[0], k)
            )
    finding = only(model, batch)
    assert finding.rule == "rotary-not-relative"
    assert finding.at[0].endswith("rotary_emb")


def test_samples_that_see_each_other() -> None:
    finding = only(RotaryDecoder(fault="batch mean"), tokens(0))
    assert finding.rule == "sample-leak"
    assert finding.at == ("the input of lm_head",)


def test_an_ignored_padding_mask() -> None:
    assert found(RotaryDecoder(fault="padding ignored"), left_padded(tokens(0))) == {"padding-moves-logits"}


def test_padding_needs_no_id_that_the_table_has() -> None:
    """Idefics3's own is far beyond the table of a small one: the mask says what padding is."""
    model, batch = build("idefics3")
    model.config.pad_token_id = model.config.text_config.pad_token_id = 10**6
    seen = Gatherer(Subject(model=model, batch=batch), depth="forward")(Influence)
    assert not seen.of("padding").moves


def test_left_padding() -> None:
    """Relative positions don't mind it, learned ones need position_ids."""
    assert found(RotaryDecoder(), left_padded(tokens(0))) == set()
    assert found(build("llama")[0], left_padded(tokens(0))) == set()
    gpt2 = build("gpt2")[0]
    batch = left_padded(tokens(0))
    finding = only(gpt2, batch)
    assert finding.rule == "padding-moves-logits"
    assert "without position_ids" in finding.cause
    batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    assert found(gpt2, batch) == set()


def packed(**more: Tensor) -> dict[str, Tensor]:
    batch = tokens(0)
    del batch["attention_mask"]
    batch["position_ids"] = torch.cat([torch.arange(8), torch.arange(8)]).expand(2, -1).contiguous()
    return {**batch, **more}


def test_packed_samples() -> None:
    model = build("llama")[0]
    assert found(model, packed()) == set()
    finding = only(model, packed(attention_mask=torch.ones(2, 16, dtype=torch.long)))
    assert (finding.rule, finding.severity) == ("packed-samples-leak", "warning")
    assert "attention_mask" in finding.cause


class Misled(TinyVLM):
    """Features go to the wrong sample, to all, or nowhere."""

    def insert(self, x: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
        change: dict[str, Callable[[Tensor], Tensor]] = {
            "next": lambda p: p.roll(1, 0),
            "last": lambda p: p[-1:].expand_as(p),
            "mean": lambda p: p + p.mean(0, keepdim=True),
        }
        return x if self.way == "nowhere" else super().insert(x, mask, change[self.way](pixels))


@pytest.mark.parametrize(
    ("way", "told"),
    [
        ("next", "the image of sample 0 goes to sample 1, and sample 0 does not get it"),
        ("mean", "the image of sample 0 reaches sample"),
        ("last", "the image of sample 0 is used by no sample, while others are"),
    ],
)
def test_images_of_other_samples(way: str, told: str) -> None:
    finding = only(Misled(way=way), tiny_batch(0))
    assert finding.rule == "wrong-image"
    assert finding.message.startswith(told)


def test_images_that_go_nowhere() -> None:
    finding = only(Misled(way="nowhere"), tiny_batch(0))
    assert finding.rule == "image-without-effect"
    assert "no effect" in finding.message


def test_image_tokens_hidden_as_padding() -> None:
    model, batch = build("llava")
    batch["attention_mask"][batch["input_ids"] == IMAGE] = 0
    report = vlmdoctor.check(model, batch, **FORWARD)
    messages = [f.message for f in report.findings if f.rule == "image-without-effect"]
    assert messages == [
        "the text never attends to the images: no later logit changes when they are replaced by noise"
    ]


def test_gates_that_start_closed() -> None:
    """A path that is multiplied by a zero at first is a plan."""

    class Gated(TinyVLM):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.zeros(1))

        def insert(self, x: Tensor, mask: Tensor, pixels: Tensor) -> Tensor:
            return x + self.gate.tanh() * super().insert(torch.zeros_like(x), mask, pixels)

    assert found(Gated(), tiny_batch(0)) == set()


def test_empty_images_are_a_stand_in() -> None:
    model, batch = Misled(way="nowhere"), tiny_batch(0)
    batch["pixel_values"].zero_()
    assert "image-without-effect" not in found(model, batch)


def test_back_ends_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama import modeling_llama as module

    eager = module.eager_attention_forward

    def unscaled(*given: Any, scaling: float, **options: Any) -> Any:
        return eager(*given, scaling=scaling * 8, **options)

    monkeypatch.setattr(module, "eager_attention_forward", unscaled)
    model, batch = build("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4)
    finding = only(model, batch)
    assert finding.rule == "attention-backends-differ"
    assert model.config._attn_implementation == "sdpa"


def test_a_loss_function_and_a_tuple() -> None:
    """The logits are found where they are made, whatever the batch looks like."""
    model = RotaryDecoder(fault="no mask")
    batch = tuple(tokens(0)[name] for name in ("input_ids", "labels"))
    assert only(model, batch).rule == "future-leak"

    def loss_fn(model: nn.Module, batch: Any) -> Tensor:
        return model(batch["ids"], labels=batch["targets"]).loss

    ids = tokens(0)
    named = {"ids": ids["input_ids"], "targets": ids["labels"]}
    assert only(model, named, loss_fn=loss_fn).rule == "future-leak"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_judged_by_its_own_rounding(dtype: torch.dtype) -> None:
    model, batch = build("llama")
    assert found(model.to(dtype), batch) <= {"rotary-table-rounded"}


def test_nothing_is_left_behind() -> None:
    model, batch = build("llava")
    configs = [str(m.config) for m in model.modules() if hasattr(m, "config")]
    before = {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}
    kept = {name: value.clone() for name, value in batch.items()}
    state = torch.get_rng_state()
    model.train()
    vlmdoctor.check(model, batch, **FORWARD)
    assert all(module.training for module in model.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert configs == [str(m.config) for m in model.modules() if hasattr(m, "config")]
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(torch.equal(value, batch[name]) for name, value in kept.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
