"""weights-not-moving: gradients arrive, and the weights do not change."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from vlmdoctor.evidence.parameters import Parameter, Parameters
from vlmdoctor.evidence.steps import Steps, Track
from vlmdoctor.finding import Finding, Fix, Inferred, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import frozen, sample_parameters, sample_steps, without_movement
from vlmdoctor.rules.places import counted, listed, places, share_of

SAMPLES = 3  # a warm-up may begin with the learning rate 0
ROUNDED = {"bfloat16": 2**-8, "float16": 2**-11}  # half a step between neighbouring numbers, relative
FEW_CHANGED = 0.02  # of the elements: bfloat16 at a learning rate of 1e-5 still changes about a tenth
LARGE_SHARE = 0.01  # of the trainable numbers


NOISE = 1e-7  # of the largest gradient norm: what rounding in float32 gives
TINY = 1e-8  # a learning rate: Adam's step has that size, and float32 keeps 7 digits


@rule(
    "weights-not-moving",
    "OPT101",
    explains=(
        "trainable-not-in-optimizer",
        "optimizer-holds-other-tensors",
        "loss-not-falling",
        "image-ignored",
        "accuracy-below-gate",
    ),
)
def weights_not_moving(parameters: Parameters, steps: Steps) -> Iterator[Finding]:
    """Weights not updated, although gradients arrive.

    ## Why it matters
    Everything looks right: gradients flow, the loss may fall because of the other weights, and a part of the
    model does not learn. That part was unfrozen after the optimizer was made ([fastai
    2133](https://github.com/fastai/fastai/issues/2133), [rslearn
    217](https://github.com/allenai/rslearn/issues/217)), its learning rate is 0, the model was built or moved
    again after the optimizer, or its weights are bfloat16 and every update is rounded away ([ao
    1124](https://github.com/pytorch/ao/issues/1124)).

    ## Confidence and false positives
    Measured before and after steps: the gradient was not zero and not one of the compared elements changed,
    in all sampled steps, at least three. The reason is inferred from the optimizer (does it hold them, with
    which rate?) and the data type. Steps that a gradient scaler skips are not counted, nor is a warm-up that
    begins at 0. A part with a rate of 0 of its own may be intended, so it is a warning.

    ## What to do
    Make the optimizer last: after building, moving, wrapping, loading and unfreezing. Keep the weights that
    the optimizer updates in float32 and compute in bfloat16 through autocast."""
    tracks = {track.name: track for track in steps.tracks}
    learning = [p for p in parameters.parameters if p.requires_grad and _had_gradient(tracks.get(p.name))]
    stuck = [p for p in learning if not tracks[p.name].moved]
    absent = [p for p in stuck if p.in_optimizer == 0]
    rate_zero = [p for p in stuck if p.in_optimizer != 0 and p.lr == 0]
    rounded = [p for p in stuck if p not in absent and p not in rate_zero and p.dtype in ROUNDED]
    rest = [p for p in stuck if p not in absent and p not in rate_zero and p not in rounded]
    # Where a path is cut by values, such as features of zero, rounding alone gives a gradient.
    norms = [tracks[p.name].grad_norm or 0.0 for p in learning]
    rest = [p for p in rest if (tracks[p.name].grad_norm or 0.0) > NOISE * max(norms)]
    rounded += [p for p in learning if p.dtype in ROUNDED and _barely(tracks[p.name])]
    for chosen, tell in ((absent, _absent), (rate_zero, _rate_zero), (rounded, _rounded), (rest, _unknown)):
        share = share_of(chosen, learning)
        if not chosen or (chosen is rounded and share < 0.5):
            continue  # norms whose weights are 1 are rounded first: not reported alone
        message, severity, cause, fix = tell(chosen, learning, parameters)
        yield Finding(
            message,
            severity if share >= LARGE_SHARE or _whole(chosen, learning) else Severity.WARNING,
            at=places([p.name for p in chosen], [p.name for p in learning]),
            measured={
                "parameters": len(chosen),
                "sampled_steps": min(tracks[p.name].samples for p in chosen),
                "steps_with_movement": max(tracks[p.name].moved for p in chosen),
                "changed_fraction": max(
                    (tracks[p.name].changed_fraction or 0.0 for p in chosen), default=0.0
                ),
            },
            threshold={"steps_with_movement": 1}
            | ({"changed_fraction": FEW_CHANGED} if chosen is rounded else {}),
            cause=cause,
            fix=fix,
            parameters=tuple(p.name for p in chosen),
        )


def _had_gradient(track: Track | None) -> bool:
    if track is None:
        return False
    good = track.with_gradient - track.zero_gradient - track.nonfinite_gradient
    return good >= SAMPLES and track.moved + track.still >= SAMPLES


def _barely(track: Track) -> bool:
    return track.moved > 0 and track.changed_fraction is not None and track.changed_fraction < FEW_CHANGED


Parts = tuple[str, Severity, str, Fix]


def _names(chosen: Sequence[Parameter], learning: Sequence[Parameter]) -> str:
    """Whole parts by their role, else how many parameters."""
    if len(chosen) == len(learning):
        return "all weights"
    whole = _whole(chosen, learning)
    if whole and all(p.role in whole for p in chosen):
        return f"the weights of the {listed(whole)}"
    return counted(len(chosen), "weight tensor")


def _whole(chosen: Sequence[Parameter], learning: Sequence[Parameter]) -> list[str]:
    """The roles all of whose parameters are chosen."""
    roles = dict.fromkeys(p.role for p in chosen if p.role != "other")
    return [role for role in roles if all(p in chosen for p in learning if p.role == role)]


def _absent(chosen: Sequence[Parameter], learning: Sequence[Parameter], parameters: Parameters) -> Parts:
    what = _names(chosen, learning)
    if parameters.foreign:
        return (
            f"{what} get gradients and never change: the optimizer holds other tensors",
            Severity.ERROR,
            f"the optimizer holds {counted(parameters.foreign, 'tensor')} that are not the model's, and "
            "not these: the model "
            f"was built, loaded or converted again after the optimizer was made",
            Fix("make the optimizer after the model is complete", _AFTER),
        )
    return (
        f"{what} get gradients and never change: not in the optimizer",
        Severity.ERROR,
        "none of the optimizer's parameter groups holds them, as if they were unfrozen or added later, or "
        "filtered out by name",
        Fix("make the optimizer after unfreezing, from everything that should learn", _AFTER),
    )


_AFTER = ("optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)",)


def _rate_zero(chosen: Sequence[Parameter], learning: Sequence[Parameter], parameters: Parameters) -> Parts:
    whole = len(chosen) == len(learning)
    return (
        f"{_names(chosen, learning)} get gradients and never change: their learning rate is 0",
        Severity.ERROR if whole else Severity.WARNING,
        "the learning rate of their parameter group is 0" + ("" if whole else ", while others learn"),
        Fix(
            "set the learning rate; if it comes from a schedule, check its number of steps and that it "
            "is stepped"
            if whole
            else "set their learning rate, or freeze them with requires_grad_(False) if that is intended",
            ("print([group['lr'] for group in optimizer.param_groups])",),
        ),
    )


def _rounded(chosen: Sequence[Parameter], learning: Sequence[Parameter], parameters: Parameters) -> Parts:
    dtype = chosen[0].dtype
    return (
        f"updates are rounded away: {_names(chosen, learning)} hardly change in {dtype}",
        Severity.ERROR,
        f"{dtype} keeps a change only if it is about {ROUNDED.get(dtype, 0):.1g} of the weight or more, "
        "and the updates are "
        f"smaller",
        Fix(
            "keep the weights in float32 and compute in bfloat16 through autocast, or use an optimizer with "
            "stochastic rounding",
            (
                "model.float()",
                'with torch.autocast("cuda", dtype=torch.bfloat16): loss = model(**batch).loss',
            ),
        ),
    )


def _unknown(chosen: Sequence[Parameter], learning: Sequence[Parameter], parameters: Parameters) -> Parts:
    rates = [p.lr for p in chosen]
    if all(rate is not None and 0 < rate < TINY for rate in rates):
        rate = f"{max(filter(None, rates)):.2g}"
        return (
            f"{_names(chosen, learning)} get gradients and never change: their learning rate is {rate}",
            Severity.ERROR,
            f"a learning rate of {rate} is below the rounding of these weights",
            Fix(
                "look at what scales the learning rate of their group, such as layer-wise decay",
                ("print([group['lr'] for group in optimizer.param_groups])",),
            ),
        )
    held = all(p.in_optimizer for p in chosen)
    return (
        f"{_names(chosen, learning)} get gradients and never change",
        Severity.ERROR,
        Inferred(
            "the optimizer holds them and their learning rate is not 0; something undoes the update or the "
            "step is not taken; which was not established"
            if held
            else "the optimizer is not known, so the reason was not established"
        ),
        Fix("check that step() is reached and that nothing copies old weights back", ("optimizer.step()",)),
    )


@weights_not_moving.bad
def not_in_the_optimizer() -> tuple[Parameters, Steps]:
    return (
        sample_parameters(lambda p: {"in_optimizer": int(p.role != "projector")}),
        sample_steps(track=without_movement("vision_proj")),
    )


@weights_not_moving.bad
def rate_zero() -> tuple[Parameters, Steps]:
    run = sample_steps(60, loss=lambda step: 6.6, track=without_movement(""))
    return (
        sample_parameters(lambda p: {"lr": 0.0}),
        dataclasses.replace(run, steps=tuple(dataclasses.replace(s, lr=0.0) for s in run.steps)),
    )


@weights_not_moving.bad
def rounded_away() -> tuple[Parameters, Steps]:
    change = {"changed_fraction": 0.003, "update_ratio": 1e-5}
    return sample_parameters(lambda p: {"dtype": "bfloat16", "lr": 1e-7}), sample_steps(
        track=lambda t: change
    )


@weights_not_moving.good
def frozen_tower_and_warm_up() -> tuple[Parameters, Steps]:
    parameters = sample_parameters(lambda p: frozen("vision")(p) | {"in_optimizer": int(p.role != "vision")})
    return parameters, sample_steps(parameters=parameters)
