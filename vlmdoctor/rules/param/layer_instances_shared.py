"""layer-instances-shared: all layers of a stack are the same module, with one set of weights."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.module_tree import ModuleTree, Stack
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("layer-instances-shared", "PARAM112", formerly=("layers-are-one",), explains=("dropped-on-save",))
def layer_instances_shared(tree: ModuleTree) -> Iterator[Finding]:
    """Layers share one instance: `nn.ModuleList([Block()] * 8)`.

    ## Why it matters
    Multiplying a list repeats the reference: the model has the intended depth and the weights of one layer.
    It trains, but worse than it should, and a checkpoint of the real model loads into it with the last
    layer's weights everywhere.

    ## Confidence and false positives
    The entries were compared by identity. Some architectures share their layers on purpose: models that
    declare it are not judged, and it is a warning.

    ## What to do
    Create each layer separately: `nn.ModuleList(Block() for _ in range(8))`.
    """
    if tree.shares_by_design:
        return
    for stack in tree.stacks:
        if stack.different == 1:
            yield Finding(
                f"the {stack.entries} layers of {stack.name} are one and the same {stack.layer}",
                Severity.WARNING,
                at=(stack.name,),
                measured={"entries": stack.entries, "different": stack.different},
                threshold={"different": stack.entries},
                cause="a list that is multiplied repeats the reference, not the layer; assumed, not known: "
                "that they should not share their weights",
                fix=Fix(
                    "create each layer separately",
                    (f"nn.ModuleList({stack.layer}(...) for _ in range({stack.entries}))",),
                ),
            )


@layer_instances_shared.bad
def list_times_eight() -> ModuleTree:
    return ModuleTree(stacks=(Stack(name="lm.layers", layer="Block", entries=8, different=1),))


@layer_instances_shared.good
def eight_layers() -> ModuleTree:
    return ModuleTree(stacks=(Stack(name="lm.layers", layer="Block", entries=8, different=8),))


@layer_instances_shared.good
def shared_on_purpose() -> ModuleTree:
    return ModuleTree(
        stacks=(Stack(name="model.layers", layer="Block", entries=8, different=1),), shares_by_design=True
    )
