"""One forward pass serves all who only look, and each of them fails alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import families
import pytest
import tiny_vlm
import torch
from torch import nn

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.alignment import Alignment
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.image_feature_scale import ImageFeatureScale
from vlmdoctor.evidence.loss_terms import LossTerms
from vlmdoctor.evidence.numerics import Numerics
from vlmdoctor.evidence.positions import Positions
from vlmdoctor.evidence.precision import Precision
from vlmdoctor.evidence.rotations import Rotations
from vlmdoctor.probes import one_pass
from vlmdoctor.probes.images import features
from vlmdoctor.probes.numerics import activations
from vlmdoctor.subject import Subject

KINDS = (Forward, Numerics, Precision, Positions, Rotations, LossTerms, Alignment, ImageFeatureScale)


def gathered(subject: Subject) -> dict[type, Any]:
    """Each kind, or the reason why there is none."""
    gather = Gatherer(subject)
    found: dict[type, Any] = {}
    for kind in KINDS:
        try:
            found[kind] = gather(kind)
        except Unavailable as reason:
            found[kind] = str(reason)
    return found


def subject_of(family: str) -> Subject:
    """A tiny model of the family, with the same weights each time."""
    torch.manual_seed(0)
    model, batch = families.build(family)
    return Subject(model.train(), batch)


def test_eight_kinds_of_evidence_take_one_pass_and_the_way_into_the_decoder_once_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    # Counted outside of the model: what a model's own hooks count is put back.
    for module in (one_pass, features):
        monkeypatch.setattr(module, "run", counted(module.run, calls, module.__name__))
    found = gathered(subject_of("llava"))
    assert [kind for kind, made in found.items() if isinstance(made, str)] == []
    assert calls == [one_pass.__name__, features.__name__]


def counted(function: Any, calls: list[str], name: str) -> Any:
    """`function`, whose calls are noted."""

    def noting(*args: Any) -> Any:
        calls.append(name)
        return function(*args)

    return noting


@pytest.mark.parametrize("family", ["llava", "paligemma", "idefics3", "qwen2_vl", "internvl"])
def test_together_they_see_what_each_sees_alone(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    together = gathered(subject_of(family))
    monkeypatch.setattr(one_pass.OnePass, "_listen", alone(one_pass.OnePass._listen))
    assert gathered(subject_of(family)) == together


def alone(listen: Any) -> Any:
    """`_listen` for a pass of its own for each observer."""

    def each(self: Any, subject: Subject, observers: dict[str, Any], *, first: bool = False) -> Any:
        outcome = listen(self, subject, {}, first=first)
        for name, observer in observers.items():
            with one_pass.restoring(subject):
                listen(self, subject, {name: observer})
        return outcome

    return each


def test_an_observer_that_raises_is_not_judged_and_the_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = gathered(subject_of("llava"))

    def broken(self: Any, *heard: Any) -> None:
        raise ValueError("no such column")

    monkeypatch.setattr(activations.Activations, "_look", broken)
    found = gathered(subject_of("llava"))
    assert found.pop(Numerics) == "what was seen could not be read (ValueError: no such column)"
    expected.pop(Numerics)
    assert found == expected


class Shy(nn.Module):
    """Raises while hooks are on its layer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: Any) -> Any:
        hooked = [module for module in self.model.modules() if module._forward_pre_hooks]
        if hooked:
            raise RuntimeError("someone is looking")
        return self.model(**batch)


def test_a_model_that_fails_while_it_is_observed_is_judged_by_its_plain_pass() -> None:
    subject = subject_of("llava")
    found = gathered(dataclasses.replace(subject, model=Shy(subject.model)))
    assert found[Forward].failure is None
    assert found[Forward].loss is not None
    assert found[LossTerms].terms and found[Alignment].ahead == 1  # they need no hook
    assert found[ImageFeatureScale] == "the forward pass raises RuntimeError when it is observed"


def test_a_pass_that_raises_is_the_reason_for_all() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> Any:
            return self.inner(input_ids)  # whole numbers

    ids = torch.randint(3, 9, (2, 4))
    found = gathered(Subject(Broken(), {"input_ids": ids, "labels": ids}))
    assert found[Forward].failure.type == "RuntimeError"
    assert {found[kind] for kind in KINDS[1:]} == {"the forward pass raises"}


def test_nothing_waits_for_the_day_that_cuda_is_used() -> None:
    gather = Gatherer(Subject(tiny_vlm.TinyVLM(), batch=tiny_vlm.batch(0)))
    waiting = list(torch.cuda._queued_calls)
    gather(Forward)
    assert torch.cuda._queued_calls == waiting
