"""Repairs that are tried on a copy: they prove the true cause, find the line, and leave no trace."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import tiny_vlm
import torch
import torch.nn.functional as F
from test_check import everything, restless
from torch import nn
from torch.utils.checkpoint import checkpoint

import vlmdoctor
from vlmdoctor.engine import DEPTHS, Gatherer, judge
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.finding import Certainty, Finding, Severity
from vlmdoctor.proof.prove import Attempt, Measurement, prove, repair_of
from vlmdoctor.report import Report
from vlmdoctor.rulebook import Rule, all_rules, find_rule
from vlmdoctor.subject import Subject


@torch.no_grad()
def encode(encoder: nn.Module, x: torch.Tensor) -> torch.Tensor:  # cut: decorated
    return encoder(x) * 2


@contextlib.contextmanager
def frozen(tower: nn.Module) -> Iterator[None]:
    tower.eval()
    with torch.no_grad():  # cut: maybe
        yield


class Cuttable(nn.Module):
    """Cuts the image's way in one of many places."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.way = way
        self.vision_encoder = nn.Sequential(nn.Linear(12, 16), nn.GELU(), nn.Linear(16, 16))
        self.vision_proj = nn.Linear(16, 32)
        self.lm = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32))
        self.embed = nn.Embedding(50, 32)
        self.lm_head = nn.Linear(32, 50)
        self.norms: dict[str, torch.Tensor] = {}

    def forward(self, input_ids: torch.Tensor, pixel_values: torch.Tensor, labels: torch.Tensor) -> Any:
        features = self.vision_proj(self.encoded(pixel_values))
        self.norms["features"] = features.detach().norm()
        if self.way == "detach":
            features = features.detach()  # cut: detach
        if self.way == "unused":
            features = torch.zeros_like(features)
        text = self.embed(input_ids)
        x = text + features.mean(1, keepdim=True)
        if self.way == "data":
            x = text.clone()
            x.data[:, :4] = features.data  # cut: data
        if self.way == "call":
            torch.set_grad_enabled(True)
        logits = self.lm_head(self.lm(x))
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        self.norms["loss"] = loss.detach()
        return {"loss": loss, "logits": logits}

    def encoded(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.way == "absent":
            return torch.zeros(*pixels.shape[:2], 16)
        if self.way == "decorated":
            return encode(self.vision_encoder, pixels)
        if self.way == "no_grad":
            with torch.no_grad():  # cut: no_grad
                return self.vision_encoder(pixels)
        if self.way == "inference":
            with torch.inference_mode():  # cut: inference
                features = self.vision_encoder(pixels)
            return features.clone()
        if self.way == "maybe":
            with frozen(self.vision_encoder):
                return self.vision_encoder(pixels)
        if self.way == "chosen":
            around = torch.no_grad() if self.training else contextlib.nullcontext()
            with around:  # cut: chosen
                return self.vision_encoder(pixels)
        if self.way == "call":
            torch.set_grad_enabled(False)  # cut: call
            return self.vision_encoder(pixels)
        if self.way == "numpy":
            stored = self.vision_encoder(pixels).detach().numpy()  # cut: numpy
            return torch.from_numpy(stored.reshape(-1, 16).copy()).view(*pixels.shape[:2], 16)
        if self.way == "list":
            rows = [each.tolist() for each in self.vision_encoder(pixels)]  # cut: list
            return torch.FloatTensor(rows)
        if self.way == "stored":
            with torch.no_grad():  # cut: stored
                stored = self.vision_encoder(pixels).numpy()
            return torch.from_numpy(stored)
        if self.way == "rounded":
            return torch.from_numpy(self.vision_encoder(pixels).detach().numpy().round(2))
        if self.way == "checkpoint":
            return checkpoint(self.vision_encoder, pixels, use_reentrant=True)  # cut: checkpoint
        return self.vision_encoder(pixels)


def batch() -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    return {
        "input_ids": torch.randint(0, 50, (2, 6), generator=drawn),
        "pixel_values": torch.rand(2, 4, 12, generator=drawn),
        "labels": torch.randint(0, 50, (2, 6), generator=drawn),
    }


def line_of_cut(way: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(i for i, line in enumerate(lines, 1) if line.endswith(f"# cut: {way}"))


def only(report: Report) -> Finding:
    assert report.crashed == ()
    (finding,) = report.findings
    return finding


@pytest.mark.parametrize(
    ("way", "tensors"),
    [
        ("detach", 6),
        ("data", 6),
        ("no_grad", 4),
        ("inference", 4),
        ("checkpoint", 4),
        ("decorated", 4),
        ("maybe", 4),
        ("chosen", 4),
        ("call", 6),
        ("numpy", 4),
        ("list", 4),
        ("stored", 4),
    ],
)
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_the_line_that_cuts_the_gradient_is_proven(way: str, tensors: int) -> None:
    finding = only(vlmdoctor.check(Cuttable(way), batch()))
    assert finding.rule == "no-gradient"
    assert finding.proof is not None and finding.proof.works
    assert finding.proof.before == f"0 of {tensors} tensors get a gradient"
    assert finding.proof.after == f"{tensors} of {tensors} tensors get a gradient"
    assert finding.file is not None and Path(finding.file).name == Path(__file__).name
    # A decorated function is named by the line of its decorator.
    assert finding.line == line_of_cut(way) - (way == "decorated")


@pytest.mark.parametrize(
    ("way", "seen"),
    [
        ("unused", "vision_proj runs and its output has a graph, but the loss does not depend on it"),
        ("rounded", "vision_encoder runs and its output has a graph, but the loss does not depend on it"),
        ("absent", "the forward pass never calls vision_encoder"),
    ],
)
def test_what_no_repair_explains_is_not_claimed(way: str, seen: str) -> None:
    report = vlmdoctor.check(Cuttable(way), batch(), select=["no-gradient"])
    finding = only(report)
    assert finding.rule == "no-gradient" and finding.proof is None
    assert "not established" in (finding.cause or "") and seen in (finding.cause or "")
    assert "no-gradient" in report.facts["not_proven"]


def test_two_cuts_in_a_row_are_both_found() -> None:
    model = tiny_vlm.TinyVLM(way="no_grad_proj")
    finding = only(vlmdoctor.check(model, tiny_vlm.batch(0)))
    assert finding.proof is not None and finding.proof.works
    assert finding.proof.after == "30 of 30 tensors get a gradient"
    assert finding.proof.tried.count("gradients enabled at") == 2


def test_a_forward_that_was_wrapped_from_outside_can_be_mended_too() -> None:
    model = Cuttable("")
    model.vision_encoder.forward = torch.no_grad()(model.vision_encoder.forward)  # type: ignore[method-assign]
    finding = only(vlmdoctor.check(model, batch()))
    assert finding.proof is not None and finding.proof.works


def checked(model: nn.Module, parameters: Any = None, **options: Any) -> Report:
    optimizer = torch.optim.AdamW(model.parameters() if parameters is None else parameters, lr=3e-3)
    return vlmdoctor.check(model, tiny_vlm.batch(0), optimizer=optimizer, **options)


def test_what_is_added_to_the_optimizer_moves() -> None:
    model = tiny_vlm.TinyVLM()
    finding = only(checked(model, model.language_model.parameters()))
    assert finding.proof is not None and finding.proof.works
    assert finding.proof.tried == "the 30 tensors added to the optimizer"
    assert "30 of 30 change" in finding.proof.after and "0 of 30 change" in finding.proof.before


def test_unfreezing_lets_the_loss_fall() -> None:
    model = tiny_vlm.TinyVLM().requires_grad_(False)
    model.vision_encoder.requires_grad_(True)
    finding = only(checked(model))
    assert finding.rule == "frozen-by-mistake"
    assert finding.proof is not None and finding.proof.works
    assert "the loss falls from" in finding.proof.after


def test_a_loss_fn_that_holds_on_to_its_model_proves_nothing() -> None:
    model = tiny_vlm.TinyVLM().requires_grad_(False)
    model.vision_encoder.requires_grad_(True)
    report = checked(model, loss_fn=lambda _, given: model(**given).loss)
    assert only(report).proof is None and only(report).certainty is Certainty.INFERRED
    assert "does not run the given model" in report.facts["not_proven"]["frozen-by-mistake"]


def test_an_optimizer_of_another_copy() -> None:
    finding = only(checked(tiny_vlm.TinyVLM(), tiny_vlm.TinyVLM().parameters()))
    assert finding.rule == "optimizer-holds-other-tensors"
    assert finding.proof is not None and finding.proof.works
    assert finding.proof.tried.startswith("a new optimizer for the model's")


def test_a_rate_of_zero() -> None:
    model = tiny_vlm.TinyVLM()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    finding = only(vlmdoctor.check(model, tiny_vlm.batch(0), optimizer=optimizer))
    assert finding.proof is not None and finding.proof.works
    assert finding.proof.tried == "a learning rate of 0.0001 for them"


def test_rounded_updates_arrive_in_float32() -> None:
    model = tiny_vlm.TinyVLM(tied=False).bfloat16()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
    finding = only(vlmdoctor.check(model, tiny_vlm.batch(0), optimizer=optimizer, select=["OPT101"]))
    assert finding.proof is not None and finding.proof.tried == "the weights in float32"


def test_labels_from_the_ids() -> None:
    model, data = tiny_vlm.TinyVLM(), tiny_vlm.batch(0)
    data["labels"] = torch.full_like(data["labels"], -100)
    report = vlmdoctor.check(model, data, optimizer=tiny_vlm.adamw(model))
    finding = next(f for f in report.findings if f.rule == "nothing-supervised")
    assert finding.proof is not None and finding.proof.works
    assert finding.proof.tried == "the labels taken from the token ids"
    assert finding.proof.before.startswith("0 labels")


# --- What surrounds the repairs --------------------------------------------------------------------


def with_repair(monkeypatch: pytest.MonkeyPatch, **functions: Callable[..., Any]) -> None:
    """A repair for the rule `trainable-not-in-optimizer` made of these functions."""
    module = ModuleType("vlmdoctor.repairs.trainable_not_in_optimizer")
    module.DEPTH, module.COPIES, module.OF_PARAMETERS = "backward", True, True  # type: ignore[attr-defined]
    module.apply = functions.get("apply", lambda bench, finding, gather: Attempt("a try"))  # type: ignore[attr-defined]
    measure = functions.get("measure", lambda bench, finding: Measurement("bad", False))
    if measure is not None:
        module.measure = measure  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    module.__spec__ = SimpleNamespace()  # type: ignore[assignment]


def half_held() -> tuple[nn.Module, dict[str, torch.Tensor], torch.optim.Optimizer]:
    model = tiny_vlm.TinyVLM()
    return model, tiny_vlm.batch(0), torch.optim.AdamW(model.language_model.parameters())


def found_half_held(**options: Any) -> tuple[Finding, Report]:
    model, data, optimizer = half_held()
    report = vlmdoctor.check(model, data, optimizer=optimizer, select=["OPT104"], **options)
    return only(report), report


def raises(*_: Any) -> Any:
    raise ValueError("no such luck")


@pytest.mark.parametrize("part", ["apply", "measure"])
def test_a_repair_that_raises_harms_nothing(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    with_repair(monkeypatch, **{part: raises})
    finding, report = found_half_held()
    assert report.verdict == "fail" and finding.proof is None
    assert finding.certainty is Certainty.INFERRED
    assert "no such luck" in report.facts["not_proven"]["trainable-not-in-optimizer"]


def test_a_repair_that_does_not_help_is_shown_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    with_repair(monkeypatch)
    finding, report = found_half_held()
    assert finding.proof is not None and not finding.proof.works
    assert finding.certainty is Certainty.INFERRED
    assert report.to_dict()["findings"][0]["proof"] == {
        "tried": "a try", "before": "bad", "after": "bad", "works": False
    }  # fmt: skip
    from vlmdoctor.reporters.card import rows_of

    cause = dict(rows_of(finding))["cause"]
    assert cause.startswith("inferred: ")
    assert cause.endswith("; tried a try: bad (before: bad), which did not help")


def test_without_a_measurement_the_rule_itself_is_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def apply(bench: Any, finding: Finding, gather: Any) -> Attempt:
        bench.add_to_optimizer(finding.parameters)
        return Attempt("them added")

    with_repair(monkeypatch, apply=apply, measure=None)
    finding, _ = found_half_held()
    assert finding.proof is not None and finding.proof.works
    assert finding.proof.before == finding.message
    assert finding.proof.after == "trainable-not-in-optimizer finds nothing any more"


def test_a_copy_that_does_not_show_the_fault_proves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with_repair(monkeypatch, measure=lambda bench, finding: Measurement("good", True))
    finding, report = found_half_held()
    assert finding.proof is None
    assert report.facts["not_proven"]["trainable-not-in-optimizer"] == "the copy does not show the fault"


@pytest.mark.parametrize(
    ("options", "reason"), [({"depth": "static"}, "needs --depth backward"), ({"budget": 0}, "no time")]
)
def test_depth_and_budget_hold_for_repairs_too(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], reason: str
) -> None:
    model, data, optimizer = half_held()
    subject = Subject(model, batch=data, optimizer=optimizer)
    rules = [find_rule("OPT104")]
    gather = Gatherer(subject, depth=options.get("depth", "steps"))
    report = judge(rules, gather, command="check", target="t")
    report = prove(report, subject, gather, rules, lambda: "budget" not in options)
    assert only(report).proof is None
    assert reason in report.facts["not_proven"]["trainable-not-in-optimizer"]


def still(steps: Steps) -> Any:
    """Fires where something stands still, whatever the reason."""
    if any(track.still for track in steps.tracks):
        yield Finding("something stands still", Severity.ERROR, cause="unknown")


def never(parameters: Parameters) -> Any:
    """Fires always: no repair has anything to do with it."""
    yield Finding("something else", Severity.ERROR, cause="unknown")


def test_what_goes_away_with_a_repair_is_folded_under_it() -> None:
    model, data, optimizer = half_held()
    subject = Subject(model, batch=data, optimizer=optimizer)
    still.__annotations__["steps"], never.__annotations__["parameters"] = Steps, Parameters
    rules = [Rule("a-still", "AAA001", still), Rule("a-never", "AAA002", never), find_rule("OPT104")]
    gather = Gatherer(subject)
    report = judge(rules, gather, command="check", target="t")
    assert [f.rule for f in report.findings] == ["a-still", "a-never", "trainable-not-in-optimizer"]
    report = prove(report, subject, gather, rules, lambda: True)
    first, second = report.findings
    assert (first.rule, second.rule) == (
        "trainable-not-in-optimizer",
        "a-never",
    )  # proven first
    assert first.symptoms == ("something stands still",)


def stuck(steps: Steps) -> Any:
    """Fires where a trainable tensor never gets a gradient in the trial."""
    if any(track.samples and not track.with_gradient for track in steps.tracks):
        yield Finding("something gets no gradient", Severity.ERROR, cause="unknown")


def test_a_mended_way_is_judged_like_the_model_itself() -> None:
    model = Cuttable("detach")
    subject = Subject(model, batch=batch(), optimizer=torch.optim.AdamW(model.parameters()))
    stuck.__annotations__["steps"] = Steps
    rules = [Rule("a-stuck", "AAA001", stuck), find_rule("GRAD201")]
    gather = Gatherer(subject)
    report = prove(judge(rules, gather, command="", target=""), subject, gather, rules, lambda: True)
    assert only(report).rule == "no-gradient"
    assert only(report).symptoms == ("something gets no gradient",)


@pytest.mark.parametrize("way", ["detach", "no_grad", "checkpoint", "data"])
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")
def test_trying_repairs_leaves_no_trace(way: str) -> None:
    model, data = Cuttable(way), batch()
    model.plain, model.history, model.cache = torch.zeros(1), [], None  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(model.vision_encoder.parameters(), lr=1e-3)
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    before = everything(model, data, optimizer)
    attributes = torch.utils.checkpoint.CheckpointFunction.__dict__.keys()
    report = vlmdoctor.check(model, data, optimizer=optimizer)
    assert any(finding.proof is not None for finding in report.findings)
    after = everything(model, data, optimizer)
    for what in before:
        assert before[what] == after[what], what
    assert attributes == torch.utils.checkpoint.CheckpointFunction.__dict__.keys()


def test_a_restless_model_is_left_alone_too() -> None:
    model, data, optimizer = restless()
    model.vision_proj.requires_grad_(False)
    model.lm.requires_grad_(False)
    model.lm_head.requires_grad_(False)
    before = everything(model, data, optimizer)
    report = vlmdoctor.check(model, data, optimizer=optimizer)
    assert "frozen-by-mistake" in [finding.rule for finding in report.findings]
    after = everything(model, data, optimizer)
    for what in before:
        assert before[what] == after[what], what


def test_every_repair_is_that_of_a_rule() -> None:
    folder = Path(vlmdoctor.__file__).parent / "repairs"
    names = {path.stem.replace("_", "-") for path in folder.glob("[a-z]*.py")}
    assert names and names <= {rule.name for rule in all_rules()}
    for name in names:
        repair = repair_of(name)
        assert repair is not None and repair.DEPTH in DEPTHS
        assert {repair.COPIES, repair.OF_PARAMETERS} <= {True, False}
        assert callable(repair.apply) and callable(getattr(repair, "measure", print))
    assert repair_of("no-such-rule") is None


def test_a_model_that_refuses_to_be_copied_is_told() -> None:
    from vlmdoctor.proof.workbench import workbench_for

    model = Cuttable("")
    model.lock = (x for x in ())  # type: ignore[assignment]
    with pytest.raises(Unavailable, match="can't be copied"):
        workbench_for(Subject(model, batch=batch()))
