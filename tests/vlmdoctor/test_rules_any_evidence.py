"""Rules never raise, whatever the evidence holds, and stay silent on every prefix of healthy runs."""

from __future__ import annotations

import dataclasses
import json
import math
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vlmdoctor.engine import Gatherer, judge
from vlmdoctor.evidence.parameters import Parameter, Parameters
from vlmdoctor.evidence.steps import Evaluation, NonFinite, Step, Steps, Track
from vlmdoctor.knowledge.parameter_names import ROLES, layer_of
from vlmdoctor.rulebook import all_rules
from vlmdoctor.rules._healthy import SHAPES, frozen, sample_parameters, sample_steps

RULES = [
    rule
    for rule in all_rules()
    if {kind for kind, optional in rule.requirements.values() if not optional} <= {Parameters, Steps}
]

names = st.sampled_from(
    [*SHAPES, "pooler.weight", "x.lora_A.default.weight", "x.lora_B.default.weight", "odd"]
)
numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.sampled_from([0.0, -1.0, 1e-30, 1e30, 1.0, 6.5])
)
maybe = st.none() | numbers
counts = st.integers(0, 30)
maybe_count = st.none() | counts


@st.composite
def parameters(draw) -> Parameters:
    found = []
    for name in draw(st.lists(names, max_size=12, unique=True)):
        layer, depth = layer_of(name)
        found.append(
            Parameter(
                name=name,
                role=draw(st.sampled_from(ROLES)),
                layer=layer,
                depth=depth,
                shape=tuple(draw(st.lists(st.integers(0, 4), max_size=2))),
                dtype=draw(st.sampled_from(["float32", "bfloat16", "float16", "uint8"])),
                requires_grad=draw(st.booleans()),
                wanted=draw(st.none() | st.booleans()),
                in_optimizer=draw(st.none() | st.integers(0, 2)),
                lr=draw(maybe),
            )
        )
    return Parameters(
        parameters=tuple(found),
        adapters=draw(st.booleans()),
        vocab_size=draw(st.none() | st.integers(0, 7000)),
        foreign=draw(st.integers(0, 30)),
        unmatched=tuple(draw(st.lists(st.sampled_from(["mm_projector", "*", ""]), max_size=2))),
    )


@st.composite
def runs(draw) -> Steps:
    length = draw(st.sampled_from([0, 1, 3, 12, 40, 160, 600]))
    losses = draw(st.lists(maybe, min_size=1, max_size=5))
    norms = draw(st.lists(maybe, min_size=1, max_size=5))
    rates = draw(st.lists(maybe, min_size=1, max_size=3))
    labels = draw(st.lists(maybe_count, min_size=1, max_size=3))
    layers = draw(st.dictionaries(names.map(lambda name: layer_of(name)[0]), numbers, max_size=8))
    steps = tuple(
        Step(
            step=step,
            loss=losses[step % len(losses)],
            lr=rates[step % len(rates)],
            grad_norm=norms[step % len(norms)],
            grad_norm_after=None,
            role_grad_norms={},
            layer_grad_norms=layers,
            role_update_ratios={},
            supervised_tokens=labels[step % len(labels)],
            images=labels[step % len(labels)],
        )
        for step in range(draw(st.integers(0, 3)), length)
    )
    tracks = tuple(
        Track(
            name=name,
            samples=draw(counts),
            with_gradient=draw(counts),
            zero_gradient=draw(counts),
            nonfinite_gradient=draw(counts),
            first_nonfinite=None,
            grad_norm=draw(maybe),
            update_ratio=draw(maybe),
        )
        for name in draw(st.lists(names, max_size=8, unique=True))
    )
    evaluations = tuple(
        Evaluation(
            step=draw(st.integers(0, 600)),
            loss=draw(maybe),
            loss_shuffled=draw(maybe),
            loss_blank=draw(maybe),
            accuracy=draw(maybe),
            accuracy_shuffled=draw(maybe),
            samples=draw(maybe_count),
        )
        for _ in range(draw(st.integers(0, 2)))
    )
    nonfinite = None
    if draw(st.booleans()):
        nonfinite = NonFinite(
            step=draw(counts),
            where=draw(st.sampled_from(["loss", "activation", "gradient", "weight"])),
            module=draw(st.none() | names),
            module_class=None,
            inputs_finite=draw(st.none() | st.booleans()),
            parameters=(),
            largest=draw(maybe),
        )
    return Steps(
        steps=steps,
        tracks=tracks,
        evaluations=evaluations,
        nonfinite=nonfinite,
        planned_steps=draw(maybe_count),
        finished=draw(st.booleans()),
        resumed=draw(st.none() | st.booleans()),
        accumulates_without_reset=draw(st.none() | st.booleans()),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(parameters(), runs())
def test_rules_never_raise(parameters: Parameters, steps: Steps) -> None:
    report = judge(RULES, Gatherer(None, (parameters, steps)), command="test", target="anything")
    assert report.crashed == ()
    json.dumps(report.to_dict(), allow_nan=False)


def noisy(count: int, shape, seed: int = 0, noise: float = 0.1):
    drawn = random.Random(seed)
    losses = [max(0.0, shape(step) + drawn.gauss(0, noise)) for step in range(count)]
    return losses.__getitem__


FALLING = {
    "quick": noisy(400, lambda step: 0.3 + 6.2 * math.exp(-step / 30)),
    "slow": noisy(400, lambda step: 6.5 - 0.004 * step, noise=0.4),
    "plateau first": noisy(400, lambda step: 6.5 - 2 / (1 + math.exp(-(step - 120) / 15)) - 0.002 * step),
    "stairs": noisy(400, lambda step: 6.5 - 1.0 * (step // 100)),
    "floor": noisy(400, lambda step: max(1.3, 6.5 - 0.05 * step)),
    "spikes": noisy(400, lambda step: 0.3 + 6.2 * math.exp(-step / 60) + (3.0 if step % 97 == 96 else 0.0)),
}
SHORT = (1, 2, 5, 9, 10, 11, 20, 21, 25, 30, 31, 40, 57, 60, 99, 101, 119, 121, 140, 151, 199, 250, 301, 400)


def prefix(run: Steps, length: int, every: int) -> Steps:
    samples = len(range(0, length, every))
    tracks = tuple(
        dataclasses.replace(
            track,
            samples=min(track.samples, samples),
            with_gradient=min(track.with_gradient, samples),
            zero_gradient=min(track.zero_gradient, samples),
            moved=min(track.moved, max(0, samples - 1)),
            still=min(track.still, samples),
        )
        for track in run.tracks
    )
    whole = length == len(run.steps)
    evaluations = tuple(e for e in run.evaluations if e.step < length)
    return dataclasses.replace(
        run, steps=run.steps[:length], tracks=tracks, evaluations=evaluations, finished=whole
    )


def assert_silent(parameters: Parameters, run: Steps, every: int = 10) -> None:
    for length in (n for n in SHORT if n <= len(run.steps)):
        report = judge(
            RULES, Gatherer(None, (parameters, prefix(run, length, every))), command="test", target="healthy"
        )
        told = [(finding.rule, finding.message) for finding in report.findings]
        assert (length, report.crashed, told) == (length, (), [])


@pytest.mark.parametrize("shape", FALLING)
@pytest.mark.parametrize("resumed", [False, None])
def test_healthy_runs_are_silent_at_every_length(shape: str, resumed: bool | None) -> None:
    assert_silent(sample_parameters(), sample_steps(400, loss=FALLING[shape], resumed=resumed))


@pytest.mark.parametrize("roles", [("vision",), ("vision", "language", "head"), ("vision", "projector")])
def test_frozen_parts_are_silent(roles: tuple[str, ...]) -> None:
    known = sample_parameters(lambda p: frozen(*roles)(p) | {"in_optimizer": int(p.role not in roles)})
    assert_silent(known, sample_steps(400, parameters=known))


def test_adapters_on_a_frozen_base_are_silent() -> None:
    base = sample_parameters(lambda p: {"requires_grad": False, "in_optimizer": 0, "lr": None})
    added = [
        dataclasses.replace(
            p,
            name=p.name.replace("weight", f"lora_{side}.default.weight"),
            shape=(8, 320),
            requires_grad=True,
            in_optimizer=1,
            lr=1e-4,
        )
        for p in base.parameters
        if p.layer and p.role == "language"
        for side in "AB"
    ]
    known = dataclasses.replace(base, parameters=(*base.parameters, *added), adapters=True)
    run = sample_steps(
        400,
        parameters=known,
        loss=noisy(400, lambda step: 1.6 - 0.001 * step),
        resumed=None,
        # B starts at zero and the first learning rate is 0, so that A has no gradient in two steps
        track=lambda t: {"zero_gradient": 2} if "lora_A" in t.name else {},
    )
    assert_silent(known, run)


def test_fine_tuning_with_a_low_flat_loss_is_silent() -> None:
    run = sample_steps(400, loss=noisy(400, lambda step: 0.9), resumed=None)
    assert_silent(sample_parameters(), run)
    assert_silent(sample_parameters(), dataclasses.replace(run, resumed=True))


def test_skipped_steps_of_a_gradient_scaler_are_silent() -> None:
    found = NonFinite(step=0, where="gradient", parameters=("model.vision_proj.weight",), inputs_finite=True)
    run = sample_steps(400, nonfinite=found, every=1)
    steps = tuple(
        dataclasses.replace(s, grad_norm=math.inf, grad_norm_after=math.nan, layer_grad_norms={})
        if s.step < 8
        else s
        for s in run.steps
    )
    spoiled = {"nonfinite_gradient": 8, "first_nonfinite": 0}
    tracks = tuple(dataclasses.replace(track, **spoiled) for track in run.tracks)
    assert_silent(sample_parameters(), dataclasses.replace(run, steps=steps, tracks=tracks), every=1)


def test_a_model_that_is_only_learning_to_look_is_silent() -> None:
    """Looking comes late, in a jump; every evaluation on the way there is of a run that is not over."""
    evaluations = tuple(
        Evaluation(
            step=step,
            loss=1.3 if step < 250 else 0.3,
            loss_shuffled=1.302 if step < 250 else 3.0,
            accuracy=0.1 if step < 250 else 0.9,
            accuracy_shuffled=0.1,
            samples=200,
        )
        for step in range(49, 400, 50)
    )
    assert_silent(sample_parameters(), sample_steps(400, evaluations=evaluations))
