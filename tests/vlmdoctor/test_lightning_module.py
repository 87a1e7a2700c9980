"""A LightningModule as what is examined. Lightning is not needed: a class with its traits stands for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_vlm import TinyVLM, adamw, batch
from torch import nn

import vlmdoctor
from vlmdoctor.targets.factory import subject_of
from vlmdoctor.targets.frameworks.lightning_module import module_in


class LightningModule(nn.Module):
    """As Lightning's own outside of a run: no trainer, and a log that has nowhere to go."""

    def __init__(self) -> None:
        super().__init__()
        self._trainer = None

    @property
    def trainer(self) -> Any:
        raise RuntimeError(f"{type(self).__name__} is not attached to a `Trainer`.")

    def log(self, *arguments: Any, **keywords: Any) -> None:
        raise RuntimeError("there is no trainer to log to")

    def training_step(self, *arguments: Any) -> Any:
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        raise NotImplementedError


class Lit(LightningModule):
    """The whole model in one attribute, as most are."""

    def __init__(self, model: nn.Module | None = None, configured: Callable[[Any], Any] = adamw) -> None:
        super().__init__()
        self.model = TinyVLM() if model is None else model
        self.configured = configured
        self.losses: list[float] = []
        self.metric = nn.Module()
        self.metric.seen = 0

    def training_step(self, given: Any, batch_idx: int) -> Any:
        output = self.model(**given)
        self.log("train/loss", output.loss)
        self.logger.experiment.add_scalar("loss", output.loss.item())
        self.log("lr", self.optimizers().param_groups[0]["lr"] / self.trainer.world_size)
        self.losses.append(output.loss.item())
        self.metric.seen += 1
        self.last = batch_idx
        return {"loss": output.loss, "logits": output.logits}

    def configure_optimizers(self) -> Any:
        assert self.trainer.estimated_stepping_batches > 0
        return self.configured(self)


class Split(LightningModule):
    """Its parts are attributes of the module itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.vision_encoder, self.vision_proj = model.vision_encoder, model.vision_proj
        self.language_model, self.lm_head = model.language_model, model.lm_head
        self.way = model.way

    insert = TinyVLM.insert
    forward = TinyVLM.forward

    def training_step(self, given: Any) -> Any:
        return self(**given).loss

    def configure_optimizers(self) -> Any:
        return adamw(self)

    def train_dataloader(self) -> Any:
        return [batch(0), batch(1)]


class Data:
    """A data module."""

    def setup(self, stage: str) -> None:
        self.rows = [batch(2)] if stage == "fit" else []

    def train_dataloader(self) -> Any:
        return self.rows


OTHER = adamw(nn.Linear(1, 1))


def found(report: Any) -> list[str]:
    return [finding.rule for finding in report.findings]


def test_healthy_and_untouched() -> None:
    module = Lit()
    before = copy.deepcopy(module.state_dict())
    report = vlmdoctor.check(module, batch(0))
    assert (found(report), report.crashed) == ([], ())
    assert {"no-gradient", "future-leak", "image-without-effect", "weights-not-moving"} <= set(report.ran)
    assert report.facts["model"] == "TinyVLM"
    assert (module.losses, module.metric.seen, hasattr(module, "last")) == ([], 0, False)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_the_rules_that_run_are_those_of_the_model_alone() -> None:
    model = TinyVLM()
    alone = set(vlmdoctor.check(model, batch(0), optimizer=adamw(model)).ran)
    # That the model ignores num_items_in_batch is Lightning's concern as little as a loss function's.
    assert alone - set(vlmdoctor.check(Lit(), batch(0)).ran) <= {"accumulation-not-divided"}


@pytest.mark.parametrize("way", ["data", "no_grad_proj"])
def test_a_cut_is_found_under_the_models_names(way: str) -> None:
    (finding,) = vlmdoctor.check(Lit(TinyVLM(way=way)), batch(0), select=["no-gradient"]).findings
    assert any(place.startswith("vision_proj") for place in finding.at)


def test_what_the_optimizer_leaves_out_is_found() -> None:
    module = Lit(configured=lambda self: adamw(self.model.language_model))
    report = vlmdoctor.check(module, batch(0), select=["OPT"])
    assert found(report) in (["trainable-not-in-optimizer"], ["weights-not-moving"])


@pytest.mark.parametrize(
    ("form", "several", "scheduled"),
    [
        (lambda o, s: o, False, False),
        (lambda o, s: [o], False, False),
        (lambda o, s: ([o], [s]), False, False),
        (lambda o, s: ([o], [{"scheduler": s, "interval": "step"}]), False, True),
        (lambda o, s: {"optimizer": o}, False, False),
        (lambda o, s: {"optimizer": o, "lr_scheduler": s}, False, False),
        (lambda o, s: {"optimizer": o, "lr_scheduler": {"scheduler": s, "interval": "step"}}, False, True),
        (
            lambda o, s: ({"optimizer": o, "lr_scheduler": s}, {"optimizer": adamw(nn.Linear(1, 1))}),
            True,
            False,
        ),
        (lambda o, s: [o, adamw(nn.Linear(1, 1))], True, False),
    ],
)
def test_each_form_of_configure_optimizers(form: Any, several: bool, scheduled: bool) -> None:
    def configured(module: Any) -> Any:
        optimizer = adamw(module)
        return form(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, step / 9)))

    subject = subject_of(Lit(configured=configured), "the test")
    assert isinstance(subject.optimizer, list) == several
    assert (subject.lr_scheduler is not None) == scheduled
    first = subject.optimizer[0] if several else subject.optimizer
    # A warm-up by epochs is not taken for one that holds all steps at a rate of 0.
    assert first.param_groups[0]["lr"] == (0 if scheduled else 3e-3)


def test_no_optimizer_is_no_optimizer() -> None:
    assert subject_of(Lit(configured=lambda self: None), "the test").optimizer is None


def test_parts_of_its_own_and_its_own_loader() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    module = Split(TinyVLM(tied=False))
    torch.set_rng_state(state)
    report = vlmdoctor.check(module)
    assert torch.equal(torch.get_rng_state(), state)
    assert (found(report), report.crashed, report.facts["model"]) == ([], (), "Split")
    assert "no-gradient" in report.ran


def test_a_data_module_gives_the_batch() -> None:
    subject = subject_of((Lit(), Data()), "the test")
    assert torch.equal(subject.batch["input_ids"], batch(2)["input_ids"])


def test_wrapped_and_compiled() -> None:
    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        raise AssertionError("nothing is to be compiled for a few passes")

    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

    outer = torch.compile(Lit(TinyVLM(way="data")), backend=backend)
    inner = Lit(torch.compile(TinyVLM(way="data"), backend=backend))
    for module in (outer, inner, Wrapper(inner)):
        (finding,) = vlmdoctor.check(module, batch(0), select=["no-gradient"]).findings
        assert any(place.startswith("vision_proj") for place in finding.at)


def test_adapters_in_it() -> None:
    import peft

    config = peft.LoraConfig(r=2, target_modules=r"language_model.*(qkv|out)")
    report = vlmdoctor.check(Lit(peft.get_peft_model(TinyVLM(tied=False), config)), batch(0))
    assert (found(report), report.crashed) == ([], ())
    assert report.facts["model"] == "PeftModel"


def test_the_users_own_loss_function_sees_the_module() -> None:
    module = Lit()
    subject = subject_of(
        vlmdoctor.Subject(module, batch(0), loss_fn=lambda m, b: m.model(**b).loss), "the test"
    )
    assert subject.model is module
    assert subject.loss_fn(module, subject.batch) > 0


class TestOneClearSentence:
    def test_optimization_by_hand(self) -> None:
        module = Lit()
        module.automatic_optimization = False
        with pytest.raises(vlmdoctor.UserError, match=r"optimizes by hand .* give loss_fn"):
            vlmdoctor.check(module, batch(0))

    def test_an_optimizer_that_raises(self) -> None:
        module = Lit(configured=lambda self: adamw(self.projector))
        with pytest.raises(vlmdoctor.UserError, match="configure_optimizers of Lit raised AttributeError"):
            vlmdoctor.check(module, batch(0))

    def test_what_is_no_optimizer(self) -> None:
        with pytest.raises(vlmdoctor.UserError, match="an object of type str where an optimizer"):
            vlmdoctor.check(Lit(configured=lambda self: ["adamw"]), batch(0))

    def test_an_empty_loader(self) -> None:
        module = Split(TinyVLM())
        module.train_dataloader = list
        data = Data()
        data.setup = lambda stage: setattr(data, "rows", [])
        with pytest.raises(vlmdoctor.UserError, match="train_dataloader of Data gives no batch"):
            vlmdoctor.check(module, data)

    def test_what_only_a_run_can_tell(self) -> None:
        class Asks(Lit):
            def training_step(self, given: Any, batch_idx: int) -> Any:
                return self.model(**given).loss * self.trainer.strategy.scale

        report = vlmdoctor.check(Asks(), batch(0), select=["forward-raises", "no-gradient"])
        assert report.findings == ()
        assert any("trainer.strategy" in str(skip) for skip in report.skipped)


def test_what_is_no_lightning_module() -> None:
    assert module_in(TinyVLM()) is None
    assert module_in("minivlm") is None
