"""A GPU whose clocks are throttled."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import card, workstation

_WORDS = {"thermal": "heat", "slowdown": "the hardware", "power-brake": "the power supply"}


@rule("gpu-throttled", "ENV212")
def gpu_throttled(environment: Environment) -> Iterator[Finding]:
    """GPU throttled by heat, by its power supply, or by the hardware.

    ## Why it matters
    Training continues at a fraction of the speed on this GPU; in a parallel job all others wait for it
    (https://github.com/NVIDIA/NVSentinel/issues/890).

    ## Confidence and false positives
    The reason is the GPU's own at this moment. An idle GPU's low clocks and the usual power cap are not
    reported. It is one moment only, so it is a warning.

    ## What to do
    Look at temperature, fans and power supply of the GPU that is named.
    """
    for index, gpu in enumerate(environment.gpus):
        reasons = [_WORDS[reason] for reason in gpu.throttle if reason in _WORDS]
        # The other reasons of an idle GPU say nothing about a busy one.
        if not reasons or "idle" in gpu.throttle:
            continue
        yield Finding(
            message=f"GPU {index} is throttled by {' and '.join(reasons)}",
            severity=Severity.WARNING,
            at=(f"GPU {index}: {gpu.name}",),
            measured={"reasons": list(gpu.throttle)},
            cause="the GPU protects itself",
            fix=Fix(
                "look at temperature and power",
                (f"nvidia-smi -q -d TEMPERATURE,POWER,PERFORMANCE -i {index}",),
            ),
        )


@gpu_throttled.bad
def too_hot() -> Environment:
    return workstation(gpus=(card(throttle=("thermal",)), card(1)))


@gpu_throttled.good
def idle_and_capped() -> Environment:
    return workstation(gpus=(card(throttle=("idle",)), card(1, throttle=("power-cap",))))
