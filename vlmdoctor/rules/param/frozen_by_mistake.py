"""frozen-by-mistake: parts of the model that should learn have requires_grad=False."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from vlmdoctor.evidence.parameters import Parameter, Parameters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.parameter_names import is_adapter
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import frozen, sample_parameters
from vlmdoctor.rules.places import counted, listed, places

LINKS = (
    "https://github.com/QwenLM/Qwen-VL/issues/124",
    "https://github.com/haotian-liu/LLaVA/issues/1173",
    "https://github.com/allenai/rslearn/issues/217",
)


@rule(
    "frozen-by-mistake",
    "PARAM101",
    explains=(
        "backward-raises",
        "no-gradient",
        "loss-not-falling",
        "image-ignored",
        "vanishing-gradient",
        "accuracy-below-gate",
        "frozen-untrained",
    ),
    formerly=("adapters-frozen", "PARAM305"),
)
def frozen_by_mistake(parameters: Parameters) -> Iterator[Finding]:
    """Frozen by mistake: parts that should learn have `requires_grad=False`.

    ## Why it matters
    A frozen parameter gets no gradient, and neither PyTorch nor the optimizer warns. Training continues with
    the rest: the loss may even fall, since another part adapts. People find out days later ([Qwen-VL
    124](https://github.com/QwenLM/Qwen-VL/issues/124), [LLaVA
    1173](https://github.com/haotian-liu/LLaVA/issues/1173)). `PeftModel.from_pretrained` loads adapters for
    inference, all of them frozen ([llama-cookbook
    16](https://github.com/meta-llama/llama-cookbook/issues/16)).

    ## Confidence and false positives
    Freezing is common practice, so a frozen vision tower or a frozen language model under a projector that
    learns is never reported. It is an error if nothing can learn; if a part is frozen that was declared as
    trainable; if a part is frozen that the optimizer holds while other frozen parts are not in the optimizer;
    or if the optimizer holds frozen parts and the rest can't make a vision-language model. An optimizer made
    from `model.parameters()` holds everything and says little about the intent, so the other cases are
    warnings, which name the assumption. With adapters (LoRA) a frozen base is intended.

    ## What to do
    Set `requires_grad` before the optimizer is made, for exactly the modules that should learn:

        for part in (model.vision_proj, model.lm, model.lm_head):
            part.requires_grad_(True)

    If the part should be frozen, leave it out of the optimizer, or declare what learns
    (`trainable=["vision_proj"]`), and nothing is reported. Load adapters that should learn with
    `is_trainable=True`.
    """
    everything = parameters.parameters
    stuck = [p for p in everything if not p.requires_grad and _can_learn(p)]
    if not stuck:
        return
    declared = [p for p in stuck if p.wanted]
    if not any(p.requires_grad for p in everything):
        yield _nothing_learns(parameters)
    elif declared:
        yield _against_declaration(declared, everything)
    elif not parameters.adapters and all(p.wanted is None for p in everything):
        yield from _implausible(parameters, stuck)


def _nothing_learns(parameters: Parameters) -> Finding:
    everything = parameters.parameters
    adapters = [p for p in everything if is_adapter(p.name)] if parameters.adapters else []
    if adapters:
        return _finding(
            f"nothing can learn: the {counted(len(adapters), 'adapter tensor')} and the base are frozen",
            Severity.ERROR,
            adapters,
            everything,
            "requires_grad is False everywhere, as after PeftModel.from_pretrained without is_trainable",
            Fix(
                "load the adapters to be trained",
                ("model = PeftModel.from_pretrained(base, folder, is_trainable=True)",),
            ),
        )
    return _finding(
        "every parameter is frozen: nothing can learn",
        Severity.ERROR,
        everything,
        everything,
        "requires_grad is False on all of them, so the loss has no graph",
        Fix("set requires_grad for what should learn", ("model.requires_grad_(True)",)),
    )


def _against_declaration(declared: Sequence[Parameter], everything: Sequence[Parameter]) -> Finding:
    roles = _roles(declared)
    whole = [
        role for role in roles if not any(p.requires_grad for p in everything if p.role == role and p.wanted)
    ]
    what = listed(_called(role) for role in whole) if whole else counted(len(declared), "parameter")
    return _finding(
        f"{what}, declared as trainable, {'is' if len(whole or declared) == 1 else 'are'} frozen",
        Severity.ERROR if whole else Severity.WARNING,
        declared,
        everything,
        "the declared names match them, but their requires_grad is False; which line froze them is not known",
        _unfreeze(declared, everything),
    )


def _implausible(parameters: Parameters, stuck: Sequence[Parameter]) -> Iterator[Finding]:
    whole = [role for role in _roles(stuck) if not any(p.requires_grad for p in parameters.role(role))]
    core = [role for role in ("projector", "language", "head") if role in whole]
    learning = {p.role for p in parameters.parameters if p.requires_grad}
    if "projector" in learning:  # under a frozen language model that is the usual alignment stage
        core = ["head"] if "head" in core and "language" in learning else []
    if not core or not (parameters.role("projector") or "language" in learning):
        return  # the rest without a projector: a probe, or a learned prompt
    chosen = [p for p in stuck if p.role in core]
    held = any(p.in_optimizer for p in chosen)
    selective = held and any(p.in_optimizer == 0 for p in stuck)
    # Nothing between image and text adapts; or both sides change around a frozen projector. Parts of unknown
    # role that learn might be the bridge.
    hopeless = "other" not in learning and (
        {"projector", "language"} <= set(core) or ("projector" in core and {"vision", "language"} <= learning)
    )
    if not (held or hopeless):
        return  # such as fine-tuning the language model of a trained VLM
    learns = listed(_called(role) for role in learning_order(learning))
    if held:
        cause = "they are in the optimizer but have requires_grad=False"
        if not (selective or hopeless):
            cause += "; the optimizer holds every parameter, so freezing them may be intended"
    else:
        cause = (
            f"requires_grad is False, and only {learns} can learn; assumed, not known: that this is not "
            "intended"
        )
    yield _finding(
        f"{listed(map(_called, core))} {'is' if len(core) == 1 else 'are'} frozen: only {learns} can learn",
        Severity.ERROR if held and (selective or hopeless) else Severity.WARNING,
        chosen,
        parameters.parameters,
        cause,
        _unfreeze(chosen, parameters.parameters),
    )


def learning_order(roles: Iterable[str]) -> list[str]:
    """Roles in the order of the forward pass."""
    present = set(roles)
    return [role for role in ("vision", "projector", "language", "head", "other") if role in present]


def _roles(chosen: Iterable[Parameter]) -> list[str]:
    return learning_order(p.role for p in chosen)


def _called(role: str) -> str:
    names = {"vision": "the vision encoder", "language": "the language model", "other": "the rest"}
    return names.get(role, f"the {role}")


def _can_learn(parameter: Parameter) -> bool:
    """Quantised weights can't require gradients, and fixed position tables are often kept as parameters."""
    return "float" in parameter.dtype and "pos" not in parameter.name.rpartition(".")[2]


def _unfreeze(chosen: Sequence[Parameter], everything: Sequence[Parameter]) -> Fix:
    modules = [
        place.partition(" (")[0] for place in places([p.name for p in chosen], [p.name for p in everything])
    ]
    named = [
        name.removesuffix(".weight").removesuffix(".bias") for name in modules if not name.startswith("and ")
    ]
    lines = [f'model.get_submodule("{name}").requires_grad_(True)' for name in dict.fromkeys(named)]
    return Fix("set requires_grad before the optimizer is made", tuple(lines))


def _finding(
    message: str,
    severity: Severity,
    chosen: Sequence[Parameter],
    everything: Sequence[Parameter],
    cause: str,
    fix: Fix,
) -> Finding:
    return Finding(
        message,
        severity,
        at=places([p.name for p in chosen], [p.name for p in everything]),
        measured={
            "frozen_parameters": sum(p.numel for p in chosen),
            "trainable_parameters": sum(p.numel for p in everything if p.requires_grad),
            "in_optimizer": sum(1 for p in chosen if p.in_optimizer),
        },
        threshold={"frozen_parameters": 0},
        cause=cause,
        fix=fix,
        links=LINKS,
        parameters=tuple(p.name for p in chosen),
    )


@frozen_by_mistake.bad
def language_model_head_and_projector() -> Parameters:
    """The optimizer was given model.parameters(), but only the vision encoder has requires_grad."""
    return sample_parameters(frozen("projector", "language", "head"))


@frozen_by_mistake.bad
def declared_but_frozen() -> Parameters:
    return sample_parameters(
        lambda p: {"requires_grad": p.role == "language", "wanted": p.role in ("projector", "language")}
    )


@frozen_by_mistake.good
def alignment_stage() -> Parameters:
    """Only the projector learns; a careless optimizer holds the frozen parts too, which does no harm."""
    return sample_parameters(frozen("vision", "language", "head"))


@frozen_by_mistake.good
def frozen_tower() -> Parameters:
    return sample_parameters(
        lambda p: {"requires_grad": p.role != "vision", "in_optimizer": int(p.role != "vision")}
    )


def _adapted(trainable: bool) -> Parameters:
    sample = sample_parameters(lambda p: {"requires_grad": False, "in_optimizer": None, "lr": None})
    base = next(p for p in sample.parameters if p.role == "language" and p.layer)
    name = base.name.replace(".weight", ".lora_{}.default.weight")
    adapters = [
        Parameter(
            name=name.format(x),
            role=base.role,
            layer=base.layer,
            depth=base.depth,
            shape=(8, 8),
            dtype="float32",
            requires_grad=trainable,
        )
        for x in "AB"
    ]
    return dataclasses.replace(sample, parameters=(*sample.parameters, *adapters), adapters=True)


@frozen_by_mistake.bad
def loaded_for_inference() -> Parameters:
    return _adapted(trainable=False)


@frozen_by_mistake.good
def loaded_for_training() -> Parameters:
    return _adapted(trainable=True)
