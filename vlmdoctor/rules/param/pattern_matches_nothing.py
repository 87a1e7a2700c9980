"""pattern-matches-nothing: a declared name that no parameter has."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters
from vlmdoctor.rules.places import counted, listed


@rule(
    "pattern-matches-nothing",
    "PARAM102",
    explains=(
        "frozen-by-mistake",
        "trained-by-mistake",
        "no-gradient",
        "loss-not-falling",
        "accuracy-below-gate",
    ),
)
def pattern_matches_nothing(parameters: Parameters) -> Iterator[Finding]:
    """Pattern matches no parameter: declared names are not in the model.

    ## Why it matters
    Freezing and unfreezing go by name almost everywhere, and an outdated name does nothing, silently: the
    part keeps training, or never trains ([lerobot 4019](https://github.com/huggingface/lerobot/issues/4019),
    [LlamaFactory 10139](https://github.com/hiyouga/LlamaFactory/issues/10139), [OneLLM
    19](https://github.com/csuhan/OneLLM/issues/19)).

    ## Confidence and false positives
    Certain: each pattern was compared with every name of every parameter, without the wrappers of
    torch.compile, DDP, FSDP and PEFT, and tied parameters under each of their names. It is an error where no
    pattern matches anything; otherwise a warning, since a list may serve several models.

    ## What to do
    Use the names that `[name for name, _ in model.named_parameters()]` shows. A plain text stands for whole
    dotted parts (`lm` is not `lm_head`); `*` and `?` are wild cards.
    """
    missing = parameters.unmatched
    if not missing:
        return
    none_match = not any(p.wanted for p in parameters.parameters)
    modules = sorted(
        {part for p in parameters.parameters for part in p.name.split(".")[:-1] if not part.isdigit()}
    )
    close = {text: difflib.get_close_matches(text.strip("*."), modules, n=1, cutoff=0.5) for text in missing}
    hints = [f"'{found[0]}' instead of '{text}'" for text, found in close.items() if found]
    yield Finding(
        f"{listed(repr(text) for text in missing)}, declared as trainable, "
        f"{'matches' if len(missing) == 1 else 'match'} no parameter",
        Severity.ERROR if none_match else Severity.WARNING,
        at=missing,
        measured={"matches": 0, "parameters": len(parameters.parameters)},
        threshold={"matches": 1},
        cause=f"none of the model's {counted(len(parameters.parameters), 'parameter')} has a name like that",
        fix=Fix(
            f"did you mean {listed(hints)}?" if hints else f"the model's modules are {listed(modules[:12])}",
            ("print([name for name, _ in model.named_parameters()])",),
        ),
    )


@pattern_matches_nothing.bad
def stale_name() -> Parameters:
    known = sample_parameters(
        lambda p: {"requires_grad": p.role == "language", "wanted": p.role == "language"}
    )
    return dataclasses.replace(known, unmatched=("mm_projector",))


@pattern_matches_nothing.good
def right_name() -> Parameters:
    return sample_parameters(
        lambda p: {
            "requires_grad": p.role == "projector",
            "wanted": p.role == "projector",
            "in_optimizer": int(p.role == "projector"),
        }
    )
