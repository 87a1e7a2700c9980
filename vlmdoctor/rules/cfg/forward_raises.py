"""A forward pass that raises."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.failure import Failure
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.rulebook import rule


@rule("forward-raises", "CFG101")
def forward_raises(forward: Forward) -> Iterator[Finding]:
    """Forward pass raises on the given batch.

    ## Why it matters
    Nothing can be trained. The finding names the innermost module that was running, the line of your own code
    (or of the library that holds the model), and the tensors there: most messages of torch name sizes without
    their tensors.

    ## Confidence and false positives
    The exception is real: it was raised by your model on your batch. What it means is not judged here; where
    a more specific rule knows the cause, this finding is folded under that one.

    ## What to do
    Compare the shapes, dtypes and devices listed with what the line expects. `-v` prints the traceback.
    """
    failure = forward.failure
    if failure is not None:
        yield finding_of(failure, "the forward pass")


def finding_of(failure: Failure, what: str) -> Finding:
    """The finding for an exception that `what` raised."""
    met = {fact.name: f"{list(fact.shape)} {fact.dtype} {fact.device}" for fact in failure.values[:8]}
    met |= {fact.name: f"{list(fact.shape)} {fact.dtype} {fact.device}" for fact in failure.inputs[:4]}
    first_line = failure.message.partition("\n")[0]
    where = f"in {failure.function}" if failure.function else None
    return Finding(
        message=f"{what} raises {failure.type}{f': {first_line}' if first_line else ''}",
        severity=Severity.ERROR,
        at=(f"{failure.module} ({failure.module_class})",) if failure.module else (),
        file=failure.file,
        line=failure.line,
        measured=met,
        cause=f"raised {where}: {failure.code}" if where and failure.code else where,
    )


@forward_raises.bad
def missing_projection() -> object:
    import torch

    from vlmdoctor.subject import Subject

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_encoder = torch.nn.Linear(8, 16)
            self.lm_head = torch.nn.Linear(32, 4)

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            return self.lm_head(self.vision_encoder(pixel_values)).mean()

    return Subject(Model(), batch={"pixel_values": torch.ones(2, 8)})


@forward_raises.good
def runs() -> Forward:
    return Forward(loss=4.6, finite=True, logits_shape=(2, 8, 100), vocab_size=100, supervised_tokens=6)
