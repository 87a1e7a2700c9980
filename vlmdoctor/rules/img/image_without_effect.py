"""image-without-effect: the logits do not depend on the images."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.evidence.wiring import Wiring
from vlmdoctor.finding import Finding, Fix, Inferred, Severity
from vlmdoctor.rulebook import rule


@rule(
    "image-without-effect",
    "IMG201",
    explains=("image-ignored", "no-gradient", "wrong-image", "image-adds-nothing", "accuracy-below-gate"),
)
def image_without_effect(influence: Influence, wiring: Wiring | None) -> Iterator[Finding]:
    """Images have no effect: logits are identical when all images are replaced by noise.

    ## Why it matters
    Such a model learns from the text only: its loss falls all the same, as the most frequent answers can be
    learned without images. Causes are features that are computed and never inserted into the text, a
    placeholder that is not the token that the model looks for, an attention mask that hides the image tokens,
    or a branch that is never taken (compare [LLaVA 474](https://github.com/haotian-liu/LLaVA/issues/474),
    [784](https://github.com/haotian-liu/LLaVA/issues/784)).

    ## Confidence and false positives
    The images are replaced by noise of the same brightness and contrast, and no logit changes, not even in
    the last bit. Gates that are zero at first (Flamingo, Mllama, adapters) close a path by design: they are
    opened in memory, and if the images matter then, nothing is reported. Empty images, which some collators
    add to text-only batches, are not judged.

    ## What to do
    Print how many placeholders the model finds, and what it writes there:

        mask = input_ids == model.config.image_token_id
        print(mask.sum(), features.shape)
    """
    seen = influence.of("images")
    if seen.moves:
        return
    hidden = seen.effect is not None and seen.effect > seen.allowed
    if hidden:
        message = (
            "the text never attends to the images: no later logit changes when they are replaced by noise"
        )
        why: str | None = Inferred(
            "the features reach their own positions in the sequence, but no supervised position attends to "
            "them: their keys may be masked as padding (inferred)"
        )
        fix = Fix(
            "let the text attend to the image tokens: their attention_mask has to be 1",
            ("attention_mask[input_ids == model.config.image_token_id] = 1",),
        )
    else:
        message = "the images have no effect: no logit changes when they are replaced by noise"
        why = _why(seen)
        fix = _fix(seen, wiring)
    places = (seen.detail.get(key) for key in ("never", "ends_in", "last"))
    yield Finding(
        message=message,
        severity=Severity.ERROR,
        at=tuple(dict.fromkeys((*filter(None, places), "images"))),
        measured={"moved": seen.moved, "moved_anywhere": seen.effect, "positions": seen.positions},
        threshold={"moved": seen.allowed},
        cause=why,
        fix=fix,
    )


def _fix(seen: Change, wiring: Wiring | None) -> Fix:
    if wiring is None:
        return Fix(
            "check that the placeholder in the text is the one that the model looks for",
            ('print((batch["input_ids"] == model.config.image_token_id).sum())',),
        )
    # A model without a configuration need not have placeholders.
    if never := seen.detail.get("never"):
        return Fix(f"call {never} in the forward pass, and give its output to the language model")
    last = seen.detail.get("ends_in") or seen.detail.get("last")
    output = f"the output of {last}" if last else "the features of the images"
    return Fix(
        f"follow {output} to the language model: on the way it is dropped, overwritten or set to a constant"
    )


def _why(seen: Change) -> str:
    if never := seen.detail.get("never"):
        return f"the forward pass never calls {never}"
    last, ends_in = seen.detail.get("last"), seen.detail.get("ends_in")
    if ends_in and ends_in != last:
        return (
            f"the images have an effect up to {ends_in}: the output of {last} still changes with them, and "
            f"that of {ends_in} does not, as after a dead activation or where features are replaced"
        )
    if ends_in or last:
        return (
            f"the images have no effect after {ends_in or last}: nothing that is computed later changes "
            "with them; its features are not inserted into the sequence, or the branch that does it is not "
            "taken"
        )
    return Inferred(
        "the features are not inserted into the sequence, or the branch that does it is not taken; which "
        "was not established"
    )


@image_without_effect.bad
def dead_activation() -> Influence:
    path = {"last": "projector.linear", "ends_in": "projector"}
    return Influence(
        changes={
            "images": Change(
                what="all images",
                moved=0.0,
                allowed=0.0,
                effect=0.0,
                positions=20,
                moved_positions=0,
                row=0,
                position=0,
                detail=path,
            )
        }
    )


@image_without_effect.bad
def features_never_inserted() -> Influence:
    return Influence(
        changes={
            "images": Change(
                what="all images",
                moved=0.0,
                allowed=0.0,
                effect=0.0,
                positions=20,
                moved_positions=0,
                row=0,
                position=0,
            )
        }
    )


@image_without_effect.bad
def image_tokens_masked() -> Influence:
    return Influence(
        changes={
            "images": Change(
                what="all images",
                moved=0.0,
                allowed=0.0,
                effect=0.4,
                positions=20,
                moved_positions=0,
                row=0,
                position=0,
            )
        }
    )


@image_without_effect.good
def seen_by_the_text() -> Influence:
    return Influence(
        changes={
            "images": Change(
                what="all images",
                moved=1e-4,
                allowed=0.0,
                effect=0.4,
                positions=20,
                moved_positions=20,
                row=0,
                position=7,
            )
        }
    )
