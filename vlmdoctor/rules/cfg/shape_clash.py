"""shape-clash: parts of the full-size model have shapes that don't match, found without weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from vlmdoctor.evidence.failure import Failure, TensorFact
from vlmdoctor.evidence.shapes import Clash, Shapes
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.cfg.forward_raises import finding_of


@rule("shape-clash", "CFG401")
def shape_clash(shapes: Shapes) -> Iterator[Finding]:
    """Shape mismatch in a training step of the full-size model, whatever weights it gets.

    ## Why it matters
    A configuration can be built and still not run: one field sets the width of the vision tower's output,
    another that of the text. The exception names neither (`Image features and image tokens do not match,
    tokens: 512, features: 512`), and it comes after the download and on the GPU. A dry run gives it in
    seconds, with the values that disagree.

    ## Confidence and false positives
    Forward and backward ran on the real shapes of this model, with the batch that was given, or else one made
    from the configuration. The exception is what the model's own code raised. Which values of the
    configuration cause it is inferred from their numbers, which may occur in several fields: all are listed.
    A batch that was made from the configuration may differ from one of your processor: where only the batch
    may be the cause, it is a warning.

    ## What to do
    Change one of the values named, so that both agree, and run it again.
    """
    failure = shapes.failure
    if failure is None:
        return
    finding = finding_of(failure, f"the {shapes.phase} pass, run without weights,")
    clashes = shapes.clashes
    if shapes.batch_made and not any(clash.what or isinstance(clash.number, list) for clash in clashes):
        why = "the batch was made from the configuration and may not be what this model takes"
        yield replace(
            finding,
            severity=Severity.WARNING,
            cause=f"{finding.cause}; {why}" if finding.cause else why,
            fix=Fix("name a function that returns (model, batch) with a batch of your own processor"),
        )
        return
    if not clashes:
        yield finding
        return
    yield Finding(
        message=_message(clashes) or finding.message,
        severity=Severity.ERROR,
        at=finding.at,
        file=finding.file,
        line=finding.line,
        measured={clash.what or " = ".join(clash.said_by): clash.number for clash in clashes},
        cause=f"{failure.type}: {failure.message.partition(chr(10))[0]}",
        fix=Fix("change one of these so that they agree: " + ", ".join(_said(clash) for clash in clashes)),
    )


def _message(clashes: tuple[Clash, ...]) -> str | None:
    named = [clash for clash in clashes if clash.what]
    if len(named) != 2:
        return None
    first, second = named
    return f"{first.what} is {first.number} wide{_by(first)}, {second.what} {second.number}{_by(second)}"


def _by(clash: Clash) -> str:
    return f" ({clash.said_by[0]})" if clash.said_by else ""


def _said(clash: Clash) -> str:
    where = " or ".join(clash.said_by) or clash.what
    return f"{where} = {clash.number}"


@shape_clash.bad
def vision_narrower_than_text() -> Shapes:
    """transformers' own default Qwen2VLConfig."""
    return Shapes(
        failure=Failure(
            type="ValueError",
            message="Image features and image tokens do not match, tokens: 16, features: 16",
            module="model",
            module_class="Qwen2VLModel",
            values=(TensorFact(name="image_features", shape=(16, 3584), dtype="bfloat16", device="meta"),),
        ),
        clashes=(
            Clash(what="image_features", number=3584, said_by=("vision_config.hidden_size",)),
            Clash(what="inputs_embeds", number=8192, said_by=("text_config.hidden_size",)),
        ),
    )


@shape_clash.good
def fits() -> Shapes:
    return Shapes()
