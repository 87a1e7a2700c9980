"""wrong-image: a sample gets the image of another one."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("wrong-image", "IMG202")
def wrong_image(influence: Influence) -> Iterator[Finding]:
    """Wrong image: replacing one sample's image changes the logits of another sample.

    ## Why it matters
    Images and texts of a batch are in different tensors, and one wrong axis or index gives each question the
    image of its neighbour: the last sample's images for all ([VLM-R1
    263](https://github.com/om-ai-lab/VLM-R1/issues/263)), the first one's grid for all ([mlx-vlm
    1726](https://github.com/Blaizzy/mlx-vlm/issues/1726)), all images in the first micro-batch ([Automodel
    2181](https://github.com/NVIDIA-NeMo/Automodel/issues/2181)). The loss falls as if nothing were wrong, by
    what can be guessed without images.

    ## Confidence and false positives
    Only the first sample's image is replaced by noise, and the other samples' logits are compared bit for
    bit. It is measured only where there is one image (or one block of images) for each sample, and each
    sample has placeholders where those are known. A model in which samples should attend to each other's
    images would be reported wrongly.

    ## What to do
    Compare the images of each sample with the intended ones, after the collator and after the projector; put
    features in the order of the placeholders.
    """
    seen = influence.of("image-of-another")
    # Where experts regroup the tokens, rounding may change more than an image does.
    own = seen.effect is None or seen.detail.get("sees", seen.effect > seen.allowed)
    images = influence.changes.get("images")
    if not seen.moves and (own or images is None or not images.moves):
        return
    if not seen.moves:
        message = "the image of sample 0 is used by no sample, while others are"
        why = "its features are dropped, or replaced by another sample's"
    elif own:
        message = f"the image of sample 0 reaches sample {seen.row} too"
        why = "features of one sample are written into others, or image and batch axes are mixed"
    else:
        message = f"the image of sample 0 goes to sample {seen.row}, and sample 0 does not get it"
        why = "the images are assigned to the samples in another order than theirs"
    yield Finding(
        message=message,
        severity=Severity.ERROR,
        at=("images", f"row {seen.row}, token {seen.position}") if seen.moves else ("images", "row 0"),
        measured={"moved_in_other_samples": seen.moved, "moved_in_its_own": seen.effect},
        threshold={"moved_in_other_samples": seen.allowed},
        cause=f"{why} (inferred from which logits changed)",
        certainty=Certainty.INFERRED,
        fix=Fix(
            "keep the images in the order of their placeholders, from the collator to the insertion of "
            "features into the text"
        ),
    )


@wrong_image.bad
def rotated_by_one() -> Influence:
    return Influence(
        changes={
            "image-of-another": Change(
                what="the image of row 0",
                moved=0.3,
                allowed=4e-6,
                effect=0.0,
                positions=16,
                moved_positions=16,
                row=1,
                position=3,
            )
        }
    )


@wrong_image.bad
def for_all_samples() -> Influence:
    return Influence(
        changes={
            "image-of-another": Change(
                what="the image of row 0",
                moved=0.3,
                allowed=4e-6,
                effect=0.4,
                positions=16,
                moved_positions=16,
                row=1,
                position=3,
            )
        }
    )


@wrong_image.bad
def the_last_one_for_all() -> Influence:
    all_images = Change(
        what="all images",
        moved=0.2,
        allowed=0.0,
        effect=0.4,
        positions=20,
        moved_positions=20,
        row=0,
        position=7,
    )
    first = Change(
        what="the image of row 0",
        moved=0.0,
        allowed=4e-6,
        effect=0.0,
        positions=16,
        moved_positions=0,
        row=1,
        position=3,
    )
    return Influence(changes={"image-of-another": first, "images": all_images})


@wrong_image.good
def less_than_experts_round() -> Influence:
    """The images move less than tokens that other experts take, in bfloat16."""
    images = Change(
        what="all images",
        moved=2.6,
        allowed=0.0,
        effect=2.6,
        positions=12,
        moved_positions=12,
        row=1,
        position=9,
    )
    first = Change(
        what="the image of row 0",
        moved=0.0,
        allowed=5.3,
        effect=2.6,
        positions=16,
        moved_positions=0,
        row=1,
        position=0,
        detail={"sees": True},
    )
    return Influence(changes={"image-of-another": first, "images": images})


@wrong_image.good
def its_own() -> Influence:
    return Influence(
        changes={
            "image-of-another": Change(
                what="the image of row 0",
                moved=0.0,
                allowed=4e-6,
                effect=0.4,
                positions=16,
                moved_positions=0,
                row=1,
                position=3,
            )
        }
    )
