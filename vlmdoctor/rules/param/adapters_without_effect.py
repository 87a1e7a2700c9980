"""adapters-without-effect: the adapters' output is multiplied by zero."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.adapters import AdaptedModule, Adapters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule(
    "adapters-without-effect",
    "PARAM311",
    explains=("no-gradient", "weights-not-moving", "loss-not-falling", "zero-weights-block"),
)
def adapters_without_effect(adapters: Adapters) -> Iterator[Finding]:
    """LoRA adapters have no effect: `lora_alpha=0`, or dropout of 1.

    ## Why it matters
    The adapter adds nothing to the base model and gets gradients of exactly zero: the run costs its full
    compute, and the saved adapter equals the initial one.

    ## Confidence and false positives
    The factor was read from PEFT's layers, the dropout from the configuration.

    ## What to do
    Set `lora_alpha` to the rank or twice the rank, and `lora_dropout` to 0.1 or less.
    """
    scaled, dropped = adapters.scaling == 0, adapters.dropout >= 1
    if not scaled and not dropped:
        return
    yield Finding(
        "the adapters have no effect: their output is multiplied by 0"
        if scaled
        else "the adapters have no effect: all of their input is dropped",
        Severity.ERROR,
        at=tuple(module.name for module in adapters.modules[:4]),
        measured={
            "scaling": adapters.scaling,
            "dropout": adapters.dropout,
            "adapters": len(adapters.modules),
        },
        threshold={"dropout": 1.0} if dropped else {"scaling": 0.0},
        cause="lora_alpha is 0" if scaled else f"lora_dropout is {adapters.dropout:g}",
        fix=Fix("scale by alpha / r = 1 or 2", ("LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, ...)",)),
    )


MODULES = (
    AdaptedModule(name="model.language_model.layers.0.self_attn.q_proj", role="language", asked_as="q_proj"),
)


@adapters_without_effect.bad
def alpha_of_zero() -> Adapters:
    return Adapters(modules=MODULES, target_modules=("q_proj",), scaling=0.0)


@adapters_without_effect.bad
def everything_dropped() -> Adapters:
    return Adapters(modules=MODULES, target_modules=("q_proj",), scaling=2.0, dropout=1.0)


@adapters_without_effect.good
def usual() -> Adapters:
    return Adapters(modules=MODULES, target_modules=("q_proj",), scaling=2.0, dropout=0.05)
