"""lora-layer-numbers: layers selected by number were selected in several stacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vlmdoctor.evidence.adapters import AdaptedModule, Adapters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.parameter_names import layer_of
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import listed, places


@rule("lora-layer-numbers", "PARAM302")
def lora_layer_numbers(adapters: Adapters) -> Iterator[Finding]:
    """`layers_to_transform` also selects layers of the vision encoder.

    ## Why it matters
    PEFT looks for the number in the name, wherever the layer is: layer 3 of the vision encoder, or expert 3,
    is selected as well as layer 3 of the decoder ([peft
    2155](https://github.com/huggingface/peft/issues/2155), [peft
    3086](https://github.com/huggingface/peft/issues/3086)).

    ## Confidence and false positives
    The stacks are read from the adapted modules' names. It is a warning, since both may be intended.

    ## What to do
    Name the stack with `layers_pattern`, or write a pattern for `target_modules` with the numbers in it.
    """
    if not adapters.layers_to_transform:
        return
    stacks = Counter(layer_of(m.name)[0].rpartition(".")[0] for m in adapters.modules)
    stacks.pop("", None)
    roles = {m.role for m in adapters.modules} & {"vision", "language"}
    if len(stacks) < 2 or len(roles) < 2:
        return
    yield Finding(
        f"layers_to_transform selects layers in {listed(sorted(stacks))}",
        Severity.WARNING,
        at=places([f"{m.name}.weight" for m in adapters.modules if m.role == "vision"]),
        measured=dict(stacks),
        threshold={"stacks": 1},
        cause="the numbers are looked for in every module's name; assumed, not known: that only the "
        "language model was intended",
        fix=Fix(
            "write the numbers into a pattern for target_modules instead",
            ('target_modules = r".*language_model\\.layers\\.(0|1)\\..*(q_proj|v_proj)"',),
        ),
    )


def _chosen(*stacks: tuple[str, str]) -> Adapters:
    modules = [
        AdaptedModule(name=f"{stack}.0.self_attn.q_proj", role=role, asked_as="q_proj")
        for stack, role in stacks
    ]
    return Adapters(modules=tuple(modules), target_modules=("q_proj",), layers_to_transform=(0,))


@lora_layer_numbers.bad
def both_stacks() -> Adapters:
    return _chosen(("vision_tower.encoder.layers", "vision"), ("language_model.layers", "language"))


@lora_layer_numbers.good
def one_stack() -> Adapters:
    return _chosen(("language_model.layers", "language"))
