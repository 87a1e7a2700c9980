"""lora-on-vision: adapters on the vision encoder, because its layers are named like the language model's."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.adapters import AdaptedModule, Adapters
from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters
from vlmdoctor.rules.places import counted, listed, places

LINKS = (
    "https://github.com/huggingface/peft/issues/2615",
    "https://github.com/huggingface/peft/issues/2044",
    "https://github.com/zjysteven/lmms-finetune/issues/11",
)


@rule("lora-on-vision", "PARAM301")
def lora_on_vision(adapters: Adapters, parameters: Parameters) -> Iterator[Finding]:
    """LoRA adapters in the vision encoder as well as in the language model.

    ## Why it matters
    `target_modules=["q_proj", "v_proj"]` matches every module whose name ends like that, and the attention of
    most vision encoders has the same names. The tower is trained too, which costs memory and compute, and a
    language model server refuses the adapter ([peft 2615](https://github.com/huggingface/peft/issues/2615),
    [lmms-finetune 11](https://github.com/zjysteven/lmms-finetune/issues/11)).

    ## Confidence and false positives
    Where the adapters are is read from the model; whether that is intended is not known, so it is a warning.
    Nothing is reported for `all-linear`, for patterns and full names, where `exclude_modules` was given,
    where a name in the list occurs in the vision encoder alone, and where the vision encoder was declared as
    trainable.

    ## What to do
    Name the language model's modules in full, or use a pattern.
    """
    shared = [m for m in adapters.modules if m.role == "vision" and _short(m)]
    language = {m.asked_as for m in adapters.modules if m.role == "language" and _short(m)}
    chosen = [m for m in adapters.modules if m.role == "vision"]
    meant = any(p.wanted for p in parameters.parameters if p.role == "vision")
    by_accident = chosen and len(shared) == len(chosen) and all(m.asked_as in language for m in shared)
    if not by_accident or adapters.all_linear or adapters.excludes or adapters.layers_to_transform or meant:
        return
    names = sorted({m.asked_as for m in shared})
    yield Finding(
        f"the vision encoder has {counted(len(shared), 'adapter')}: {listed(names)} "
        f"{'name' if len(names) > 1 else 'names'} its layers too",
        Severity.WARNING,
        at=places([f"{m.name}.weight" for m in shared], [f"{m.name}.weight" for m in adapters.modules]),
        measured={
            "vision": len(shared),
            "language": sum(m.role == "language" for m in adapters.modules),
        },
        threshold={"vision": 0},
        cause="target_modules is a list of name endings, which vision encoder and language model have in "
        "common; assumed, not known: that only the language model was intended",
        fix=Fix("use a pattern that begins with the language model", (_pattern(adapters, names),)),
        links=LINKS,
    )


def _short(module: AdaptedModule) -> bool:
    return bool(module.asked_as) and "." not in module.asked_as


def _pattern(adapters: Adapters, names: list[str]) -> str:
    language = [m.name for m in adapters.modules if m.role == "language"]
    part = next((p for p in language[0].split(".") if "lang" in p or "text" in p), "language_model")
    return f'target_modules = r".*{part}.*\\.({"|".join(names)})"'


def _adapters(asked_as: str, **fields: object) -> Adapters:
    modules = (
        AdaptedModule(
            name="model.vision_tower.encoder.layers.0.self_attn.q_proj", role="vision", asked_as=asked_as
        ),
        AdaptedModule(
            name="model.language_model.layers.0.self_attn.q_proj", role="language", asked_as=asked_as
        ),
    )
    return Adapters(modules=modules, target_modules=(asked_as,) if asked_as else (), **fields)  # type: ignore[arg-type]


@lora_on_vision.bad
def by_ending() -> tuple[Adapters, Parameters]:
    return _adapters("q_proj"), sample_parameters()


@lora_on_vision.good
def by_pattern() -> tuple[Adapters, Parameters]:
    return _adapters(""), sample_parameters()


@lora_on_vision.good
def everywhere() -> tuple[Adapters, Parameters]:
    return _adapters("q_proj", all_linear=True), sample_parameters()
