"""adapters-merged: adapters are added into the base weights, so that a forward pass does not use them."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.adapters import AdaptedModule, Adapters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import counted


@rule(
    "adapters-merged",
    "PARAM310",
    explains=("backward-raises", "no-gradient", "weights-not-moving", "loss-not-falling"),
)
def adapters_merged(adapters: Adapters) -> Iterator[Finding]:
    """LoRA adapters left merged after generation or evaluation.

    ## Why it matters
    A merged layer uses its base weight alone. The adapter's matrices are not in the forward pass: they get no
    gradient, and `loss.backward()` raises where nothing else learns.

    ## Confidence and false positives
    Read from PEFT's layers themselves, which know whether they are merged.

    ## What to do
    Call `model.unmerge_adapter()` before training goes on, after each generation or evaluation.
    """
    if not adapters.merged:
        return
    yield Finding(
        f"the adapters of {counted(adapters.merged, 'layer')} are merged into the base: they can't learn",
        Severity.ERROR,
        at=tuple(module.name for module in adapters.modules[:4]),
        measured={"merged": adapters.merged, "adapters": len(adapters.modules)},
        threshold={"merged": 0},
        cause="merge_adapter() was called, as for generation, and unmerge_adapter() was not",
        fix=Fix("unmerge the adapters before training", ("model.unmerge_adapter()",)),
    )


MODULE = AdaptedModule(
    name="model.language_model.layers.0.self_attn.q_proj", role="language", asked_as="q_proj"
)


@adapters_merged.bad
def after_generation() -> Adapters:
    return Adapters(modules=(MODULE,), target_modules=("q_proj",), merged=1)


@adapters_merged.good
def in_training() -> Adapters:
    return Adapters(modules=(MODULE,), target_modules=("q_proj",))
