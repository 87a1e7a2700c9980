"""minivlm in all its shapes: healthy runs say nothing at any step, each planted fault is one finding."""

from __future__ import annotations

import functools

import pytest
import torch
from tiny_vlm import adamw, run
from torch import Tensor, nn

from minivlm.config import MiniVLMConfig
from minivlm.model import MiniVLMForConditionalGeneration
from minivlm.presets import PRESETS
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.report import Report
from vlmdoctor.watching.watcher import Watcher

SMALL = {
    "vocab_size": 120,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "head_dim": 8,
    "num_key_value_heads": 2,
    "image_size": 32,
    "patch_size": 16,
    "vision_hidden_size": 32,
    "vision_intermediate_size": 64,
    "vision_num_hidden_layers": 2,
    "vision_num_attention_heads": 4,
}


def build(preset: str = "tiny", **overrides) -> MiniVLMForConditionalGeneration:
    """The preset's architecture, with the sizes that make it slow made small."""
    torch.manual_seed(0)
    fields = {**PRESETS[preset].model, **SMALL, **overrides}
    return MiniVLMForConditionalGeneration(MiniVLMConfig(**fields)).train()


def batch(number: int, image_tokens: int = 4) -> dict[str, Tensor]:
    """Eight images of one of eight brightnesses each; the answer, left to the image, names it."""
    drawn = torch.Generator().manual_seed(number)
    answer = torch.randint(8, (8,), generator=drawn)
    ids = torch.full((8, image_tokens + 6), 7)
    ids[:, :image_tokens], ids[:, -2], ids[:, -1] = 3, 20 + answer, 2
    labels = ids.clone()
    labels[:, :-2] = -100
    pixels = answer.view(-1, 1, 1, 1) / 4 - 1 + 0.05 * torch.randn(8, 3, 32, 32, generator=drawn)
    mask = torch.ones_like(ids)
    return {"input_ids": ids, "labels": labels, "attention_mask": mask, "pixel_values": pixels}


train = functools.partial(run, data=batch)


def silent(step: int, watcher: Watcher) -> None:
    report = watcher.report()
    told = [(finding.rule, finding.message, finding.at) for finding in report.findings]
    assert (step, report.crashed, told) == (step, (), [])


def only(report: Report, rule: str, severity: Severity = Severity.ERROR) -> Finding:
    assert report.crashed == ()
    told = [(finding.rule, finding.message) for finding in report.findings]
    assert [name for name, _ in told] == [rule], told
    assert report.findings[0].severity == severity
    return report.findings[0]


@pytest.mark.parametrize("preset", PRESETS)
def test_healthy_presets_are_silent(preset: str) -> None:
    train(build(preset), steps=40, at_each=silent)


@pytest.mark.parametrize("part", ["model.vision_encoder", "model.language_model", "model.vision_proj"])
def test_usual_ways_of_freezing_are_silent(part: str) -> None:
    model = build("minimind-v", tie_word_embeddings=False)
    if part == "model.vision_proj":
        model.model.vision_encoder.requires_grad_(False)
    model.get_submodule(part).requires_grad_(False)
    train(model, steps=20, at_each=silent, resumed=None)


def test_other_shapes_are_silent() -> None:
    train(build(qk_norm=True, pixel_shuffle=2), data=lambda n: batch(n, 1), steps=20, at_each=silent)
    train(build("minimind-v", vision_layer=-2), steps=20, at_each=silent)
    train(build(num_hidden_layers=16), steps=12, at_each=silent)


def test_trainable_policies_are_silent() -> None:
    from minivlm.trainable import PATTERNS, set_trainable

    for policy in ("all", "frozen-vision", "projector", "language"):
        model = build("minimind-v")
        set_trainable(model, PATTERNS[policy])
        train(model, steps=12, at_each=silent, trainable=PATTERNS[policy])


def test_frozen_projector() -> None:
    model = build()
    model.model.vision_proj.requires_grad_(False)
    report = train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), steps=40)
    assert only(report, "frozen-by-mistake").at == ("model.vision_proj (4 tensors)",)


def test_language_model_head_and_projector_frozen() -> None:
    model = build(tie_word_embeddings=False)
    for part in (model.model.vision_proj, model.model.language_model, model.lm_head):
        part.requires_grad_(False)
    report = train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), steps=130)
    finding = only(report, "frozen-by-mistake")
    assert [place.split(" ")[0] for place in finding.at] == [
        "model.language_model",
        "model.vision_proj",
        "lm_head.weight",
    ] or len(finding.at) == 3


def test_features_put_in_through_data(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()

    def embed(input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        embeds = model.model.language_model.embed_tokens(input_ids)
        features = model.model.get_image_features(pixel_values)
        embeds.data[input_ids == 3] = features.data.flatten(0, -2)
        return embeds

    monkeypatch.setattr(model.model, "embed", embed)
    finding = only(train(model, steps=40), "no-gradient")
    assert [place.split(" ")[0] for place in finding.at] == ["model.vision_encoder", "model.vision_proj"]


@pytest.mark.parametrize(
    ("part", "places"),
    [
        ("vision_encoder", {"model.vision_encoder"}),
        ("vision_proj", {"model.vision_encoder", "model.vision_proj"}),
    ],
)
def test_a_part_under_no_grad(part: str, places: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    module = model.model.get_submodule(part)
    monkeypatch.setattr(module, "forward", torch.no_grad()(module.forward))
    finding = only(train(model, steps=40), "no-gradient")
    assert {place.split(" ")[0] for place in finding.at} == places


def test_learning_rate_zero() -> None:
    model = build()
    finding = only(train(model, adamw(model, 0.0), steps=40), "weights-not-moving")
    assert "learning rate is 0" in finding.message


def test_projector_not_in_the_optimizer() -> None:
    model = build()
    rest = [p for name, p in model.named_parameters() if "vision_proj" not in name]
    finding = only(train(model, torch.optim.AdamW(rest, lr=1e-3), steps=40), "weights-not-moving")
    assert finding.at == ("model.vision_proj (4 tensors)",)
    assert "not in the optimizer" in finding.message


@pytest.mark.parametrize("module", ["model.vision_proj", "model.language_model.layers.1.mlp", "lm_head"])
def test_nan_in_a_module_at_a_step(module: str) -> None:
    def spoil(step: int, model: nn.Module) -> None:
        if step == 17:
            model.get_submodule(module).register_forward_hook(lambda _, args, output: output * float("nan"))

    finding = only(train(build(), steps=30, before=spoil), "non-finite")
    assert finding.step == 17
    assert finding.at[0].startswith(module)


def test_every_label_masked() -> None:
    def masked(number: int) -> dict[str, Tensor]:
        given = batch(number)
        return given | {"labels": torch.full_like(given["labels"], -100)}

    only(train(build(), data=masked, steps=130), "nothing-supervised")


def test_bfloat16_weights_with_a_tiny_learning_rate() -> None:
    model = build().to(torch.bfloat16)
    finding = only(train(model, adamw(model, 1e-7), steps=30, data=halved), "weights-not-moving")
    assert "rounded away" in finding.message


def halved(number: int) -> dict[str, Tensor]:
    given = batch(number)
    return given | {"pixel_values": given["pixel_values"].to(torch.bfloat16)}


def test_blank_images() -> None:
    def blank(number: int) -> dict[str, Tensor]:
        given = batch(number)
        return given | {"pixel_values": torch.zeros_like(given["pixel_values"])}

    only(train(build(), data=blank, steps=30), "blank-images")


@pytest.mark.parametrize("looks", [False, True])
def test_evaluated_at_the_end(looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained on grey images, evaluated on real ones; and a run that learned to look."""
    monkeypatch.setattr("vlmdoctor.rules.img.image_ignored.LONG", 100)  # a run of 500 takes ten seconds

    def data(number: int) -> dict[str, Tensor]:
        given = batch(number)
        return given if looks else given | {"pixel_values": torch.full_like(given["pixel_values"], 0.3)}

    def evaluate(watcher: Watcher) -> None:
        given = batch(99_999)
        losses = []
        for shift in (0, 1):
            pixels = given["pixel_values"].roll(shift, 0)
            losses.append(float(model(**given | {"pixel_values": pixels}).loss.detach()))
        right = (0.9, 0.1) if looks else (0.12, 0.12)
        watcher.evaluated(
            {
                "loss": losses[0],
                "loss_shuffled": losses[1],
                "accuracy": right[0],
                "accuracy_shuffled": right[1],
                "samples": 200,
            }
        )

    model = build()
    report = train(model, data=data, steps=110, every=50, finally_=evaluate)
    if looks:
        assert report.findings == ()
    else:
        only(report, "image-ignored")
