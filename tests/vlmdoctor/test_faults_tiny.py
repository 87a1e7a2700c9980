"""Real runs of a tiny model: healthy ones say nothing at any step, each planted fault is one finding."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_vlm import Stack, TinyVLM, adamw, batch, run
from torch import nn
from torch.utils.checkpoint import checkpoint

import vlmdoctor
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.report import Report
from vlmdoctor.watching.watcher import Watcher


def told(report: Report) -> list[tuple[str, str]]:
    return [(finding.rule, finding.message) for finding in report.findings]


def only(report: Report, rule: str, severity: Severity = Severity.ERROR) -> Finding:
    """The one finding of a report, which must be this rule's."""
    assert report.crashed == ()
    assert [finding.rule for finding in report.findings] == [rule], told(report)
    assert report.findings[0].severity == severity
    return report.findings[0]


def silent_throughout(step: int, watcher: Watcher) -> None:
    report = watcher.report()
    assert (step, report.crashed, told(report)) == (step, (), [])


def freeze(model: nn.Module, *parts: str) -> None:
    for part in parts:
        model.get_submodule(part).requires_grad_(False)


class TestHealthy:
    """No finding after any step."""

    @pytest.mark.parametrize("resumed", [False, None, True])
    def test_plain(self, resumed: bool | None) -> None:
        run(TinyVLM(), at_each=silent_throughout, resumed=resumed)

    def test_it_learned(self) -> None:
        model = TinyVLM()
        run(model)
        assert model(**batch(10_000)).loss < 2.5

    def test_long_run_to_the_end(self) -> None:
        run(TinyVLM(), steps=200, at_each=lambda s, w: silent_throughout(s, w) if s % 13 == 0 else None)

    @pytest.mark.parametrize("depth", [8, 32])
    def test_deep(self, depth: int) -> None:
        run(TinyVLM(depth=depth), steps=12, at_each=silent_throughout)

    def test_untied_head(self) -> None:
        run(TinyVLM(tied=False), at_each=silent_throughout)

    @pytest.mark.parametrize(
        ("parts", "careless"),
        [
            (("vision_encoder",), False),
            (("vision_encoder",), True),
            # With all parameters in the optimizer a frozen projector is worth a warning.
            (("vision_encoder", "vision_proj"), False),
            (("vision_encoder", "language_model", "lm_head"), False),
            (("vision_encoder", "language_model", "lm_head"), True),
            (("language_model.embed_tokens",), False),
            (("language_model.embed_tokens",), True),
        ],
        ids=lambda value: "-".join(value) if isinstance(value, tuple) else "all-in-optimizer" * value,
    )
    def test_frozen_parts(self, parts: tuple[str, ...], careless: bool) -> None:
        model = TinyVLM(tied=False)
        freeze(model, *parts)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3) if careless else None
        run(model, optimizer, at_each=silent_throughout)

    def test_accumulation(self) -> None:
        run(TinyVLM(), steps=20, accumulate=3, at_each=silent_throughout)

    def test_no_clipping_sgd(self) -> None:
        model = TinyVLM()
        run(model, torch.optim.SGD(model.parameters(), lr=0.3), clip=None, at_each=silent_throughout)

    def test_bfloat16_autocast(self) -> None:
        class Autocast(TinyVLM):
            def forward(self, **given):
                with torch.autocast("cpu", torch.bfloat16):
                    return super().forward(**given)

        run(Autocast(), at_each=silent_throughout)

    def test_pure_bfloat16_at_a_usual_rate(self) -> None:
        model = TinyVLM().bfloat16()
        run(model, adamw(model, 1e-3), at_each=silent_throughout)

    @pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the first steps are skipped
    def test_scaler_that_skips_the_first_steps(self) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
        run(TinyVLM(), scaler=scaler, at_each=silent_throughout)

    def test_text_only_batches_now_and_then(self) -> None:
        run(TinyVLM(), data=lambda n: batch(n, images=n % 3 == 2), at_each=silent_throughout)

    def test_adapters(self) -> None:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=4, target_modules=["qkv", "out"], modules_to_save=["vision_proj"])
        model = peft.get_peft_model(TinyVLM(), config)
        run(model, steps=30, at_each=silent_throughout, resumed=None)

    def test_two_optimizers(self) -> None:
        model = TinyVLM()
        parts = [model.language_model, nn.ModuleList([model.vision_encoder, model.vision_proj])]
        run(
            model,
            [torch.optim.AdamW(part.parameters(), lr=3e-3) for part in parts],
            at_each=silent_throughout,
        )

    def test_nothing_zeroed_by_setting_to_none(self) -> None:
        model = TinyVLM()
        optimizer = adamw(model)
        optimizer.zero_grad = lambda: nn.Module.zero_grad(model, set_to_none=False)
        run(model, optimizer, at_each=silent_throughout)


class TestNoGradient:
    def test_features_through_data(self) -> None:
        finding = only(run(TinyVLM(way="data")), "no-gradient")
        assert finding.at == ("vision_encoder (28 tensors)", "vision_proj (2 tensors)")
        assert "masked_scatter" in finding.fix.commands[0]
        assert "the language model" in finding.cause and "not established" in finding.cause

    def test_one_backward_pass_is_enough(self) -> None:
        report = vlmdoctor.check(TinyVLM(way="data"), batch(0))
        assert only(report, "no-gradient").measured["passes"] == 1
        assert vlmdoctor.check(TinyVLM(), batch(0)).findings == ()

    def test_tower_under_no_grad(self) -> None:
        finding = only(run(TinyVLM(way="no_grad")), "no-gradient")
        assert finding.at == ("vision_encoder (28 tensors)",)
        assert "stop before the vision encoder" not in finding.cause or "projector" in finding.cause

    def test_projector_under_no_grad(self) -> None:
        finding = only(run(TinyVLM(way="no_grad_proj")), "no-gradient")
        assert "vision_proj (2 tensors)" in finding.at

    def test_text_alone_with_a_trainable_tower(self) -> None:
        report = run(TinyVLM(), data=lambda n: batch(n, images=False))
        finding = only(report, "no-gradient", Severity.WARNING)
        assert "the batches had no images" in finding.cause

    def test_stray(self) -> None:
        model = TinyVLM()
        model.language_model.unused_gate = nn.Linear(WIDE, WIDE)
        finding = only(run(model), "no-gradient", Severity.WARNING)
        assert finding.at == ("language_model.unused_gate (2 tensors)",)

    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
    def test_reentrant_checkpointing_behind_frozen_embeddings(self) -> None:
        class Checkpointed(Stack):
            def forward(self, x):
                for layer in self.layers:
                    x = checkpoint(layer, x, use_reentrant=True)
                return self.norm(x)

        model = TinyVLM(tied=False)
        freeze(model, "vision_encoder", "vision_proj", "language_model.embed_tokens")
        model.language_model.__class__ = Checkpointed
        finding = only(run(model), "no-gradient")
        assert finding.at == ("language_model.layers (24 tensors)",)
        assert "checkpointing" in finding.cause and "use_reentrant" in finding.fix.commands[1]

    def test_unused_last_vision_layer_is_by_design(self) -> None:
        class SecondLast(TinyVLM):
            def insert(self, x, mask, pixels):
                tower = self.vision_encoder
                patches = tower.layers[0](tower.patch_embed(pixels).flatten(2).transpose(1, 2))
                return x.masked_scatter(mask, self.vision_proj(patches))

        run(SecondLast(), at_each=silent_throughout)


WIDE = 64


class TestFrozen:
    def test_language_model_head_and_projector(self) -> None:
        model = TinyVLM(tied=False)
        freeze(model, "language_model", "lm_head", "vision_proj")
        finding = only(run(model, torch.optim.AdamW(model.parameters(), lr=1e-3)), "frozen-by-mistake")
        for part in ("language model", "head", "projector"):
            assert part in finding.message
        assert {place.split(" ")[0] for place in finding.at} == {
            "language_model",
            "lm_head.weight",
            "vision_proj",
        }

    def test_projector_that_was_declared(self) -> None:
        model = TinyVLM()
        freeze(model, "vision_proj")
        report = run(model, trainable=["vision_proj", "language_model", "vision_encoder"])
        assert only(report, "frozen-by-mistake").at == ("vision_proj (2 tensors)",)

    def test_projector_between_two_parts_that_learn(self) -> None:
        model = TinyVLM()
        freeze(model, "vision_proj")
        only(run(model, torch.optim.AdamW(model.parameters(), lr=1e-3)), "frozen-by-mistake")

    def test_stale_pattern(self) -> None:
        finding = only(run(TinyVLM(), trainable=["mm_projector"]), "pattern-matches-nothing")
        assert finding.at == ("mm_projector",)

    def test_tower_outside_the_declared_names(self) -> None:
        report = run(TinyVLM(), trainable=["vision_proj", "lm_head"])
        finding = only(report, "trained-by-mistake", Severity.WARNING)
        assert "vision_encoder (28 tensors)" in finding.at

    def test_tied_head_may_be_declared(self) -> None:
        run(TinyVLM(), trainable=["vision_*", "language_model", "lm_head"], at_each=silent_throughout)


class TestNotMoving:
    def test_not_in_the_optimizer(self) -> None:
        model = TinyVLM()
        rest = [p for name, p in model.named_parameters() if "vision_proj" not in name]
        finding = only(run(model, torch.optim.AdamW(rest, lr=3e-3)), "weights-not-moving")
        assert finding.at == ("vision_proj (2 tensors)",)
        assert "groups holds them" in finding.cause

    def test_rate_zero(self) -> None:
        model = TinyVLM()
        finding = only(run(model, adamw(model, 0.0), steps=30), "weights-not-moving")
        assert "learning rate is 0" in finding.message and "all weights" in finding.message

    def test_rate_zero_of_one_group(self) -> None:
        model = TinyVLM()
        groups = [
            {"params": [*model.language_model.parameters(), *model.vision_encoder.parameters()]},
            {"params": model.vision_proj.parameters(), "lr": 0.0},
        ]
        report = run(model, torch.optim.AdamW(groups, lr=3e-3))
        assert only(report, "weights-not-moving", Severity.WARNING).at == ("vision_proj (2 tensors)",)

    def test_rounded_away(self) -> None:
        model = TinyVLM().bfloat16()
        finding = only(run(model, adamw(model, 1e-7), steps=30), "weights-not-moving")
        assert "rounded away" in finding.message and "bfloat16" in finding.message

    def test_model_built_again(self) -> None:
        optimizer = adamw(TinyVLM())
        model = TinyVLM()
        model_report = run(model, optimizer, steps=30)
        only(model_report, "optimizer-holds-other-tensors", Severity.WARNING)

    def test_gradients_are_never_zeroed(self) -> None:
        only(run(TinyVLM(), zero=False), "gradients-pile-up")


class TestNumbers:
    def test_nan_in_a_module_from_a_step_on(self) -> None:
        def spoil(step: int, model: nn.Module) -> None:
            if step == 23:
                model.vision_proj.register_forward_hook(lambda module, args, output: output / 0 * 0)

        finding = only(run(TinyVLM(), before=spoil, steps=40), "non-finite")
        assert (finding.at, finding.step) == (("vision_proj",), 23)
        assert finding.measured["module_class"] == "Linear"

    def test_spoiled_batch(self) -> None:
        def data(number: int) -> dict:
            given = batch(number)
            if number == 12:
                given["pixel_values"][0, 0, 0, 0] = math.nan
            return given

        finding = only(run(TinyVLM(), data=data, steps=20), "non-finite")
        assert "batch" in finding.cause and "pixel_values" in finding.at

    @pytest.mark.parametrize("step", [3, 13])
    def test_one_batch_without_labels(self, step: int) -> None:
        """At a sampled step, whose labels are counted, and at another."""

        def data(number: int) -> dict:
            given = batch(number)
            if number == step:
                given["labels"][:] = -100
            return given

        finding = only(run(TinyVLM(), data=data, steps=20), "non-finite", Severity.WARNING)
        assert finding.step == step and "divide" in finding.cause

    def test_infinite_weights_from_the_start(self) -> None:
        model = TinyVLM()
        model.vision_proj.weight.data[0, 0] = math.inf
        finding = only(run(model, steps=10), "non-finite")
        assert "before the first step" in finding.cause and finding.at == ("vision_proj.weight",)

    def test_divergence(self) -> None:
        model = TinyVLM()
        report = run(model, torch.optim.SGD(model.parameters(), lr=10.0), clip=None, warmup=0, steps=40)
        assert "diverged" in only(report, "non-finite").cause


class TestLoss:
    def test_every_label_masked(self) -> None:
        class Zero(TinyVLM):
            def forward(self, **given):
                output = super().forward(**given)
                output.loss = output.loss.nan_to_num()
                return output

        def masked(number: int) -> dict:
            given = batch(number)
            given["labels"][:] = -100
            return given

        for model in (Zero(), TinyVLM()):
            finding = only(run(model, data=masked, steps=30), "nothing-supervised")
            assert finding.at == ("labels",)

    def test_weights_too_large(self) -> None:
        model = TinyVLM()
        model.language_model.embed_tokens.weight.data.normal_(0, 3)
        finding = only(run(model, steps=30), "initial-loss", Severity.WARNING)
        assert finding.measured["loss"] > 10

    def test_loss_does_not_fall_on_noise(self) -> None:
        def noise(number: int) -> dict:
            given = batch(number)
            drawn = torch.Generator().manual_seed(number)
            given["labels"] = torch.randint(95, given["labels"].shape, generator=drawn)
            return given

        finding = only(run(TinyVLM(), data=noise, steps=180), "loss-not-falling")
        assert "guesses" in finding.cause

    def test_vanishing(self) -> None:
        report = run(TinyVLM(depth=8, residual=False), steps=40, resumed=None)
        assert [f.rule for f in report.findings] == ["vanishing-gradient"], told(report)


class TestImages:
    @pytest.mark.parametrize("pixel", [0.0, 0.5])
    def test_trained_on_blank_images(self, pixel: float, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vlmdoctor.rules.img.image_ignored.LONG", 100)
        model = TinyVLM()

        def blank(number: int) -> dict:
            given = batch(number)
            given["input_ids"][:, -3] = 3  # the question no longer gives the answer away
            given["pixel_values"] = torch.full_like(given["pixel_values"], pixel)
            return given

        def evaluate(watcher: Watcher) -> None:
            given = batch(99_999, 64)
            given["input_ids"][:, -3] = 3
            shuffled = given | {"pixel_values": given["pixel_values"].roll(1, 0)}
            losses = [float(model(**which).loss.detach()) for which in (given, shuffled)]
            watcher.evaluated(
                {
                    "loss": losses[0],
                    "loss_shuffled": losses[1],
                    "accuracy": 0.13,
                    "accuracy_shuffled": 0.13,
                    "samples": 64,
                }
            )

        report = run(model, data=blank, steps=140, every=50, finally_=evaluate)
        only(report, "image-ignored" if pixel else "blank-images")
