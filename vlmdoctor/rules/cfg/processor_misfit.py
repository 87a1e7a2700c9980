"""processor-misfit: the processor's settings do not match the vision tower."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.config import Configuration, ImageSizes
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import listed


@rule("processor-misfit", "CFG306", explains=("forward-raises",))
def processor_misfit(configuration: Configuration) -> Iterator[Finding]:
    """Processor does not match the vision tower: patch size, image size or number of image tokens.

    ## Why it matters
    The prompt gets as many placeholders as the processor's patch size and feature strategy say, the tower
    makes as many features as its own do: 729 and 728, where a class token was dropped that the encoder does
    not have ([transformers 34447](https://github.com/huggingface/transformers/issues/34447)). An image of
    another size does not match the tower's position embeddings ([LLaVA
    1090](https://github.com/haotian-liu/LLaVA/issues/1090), [InternLM-XComposer
    492](https://github.com/InternLM/InternLM-XComposer/issues/492)).

    ## Confidence and false positives
    The settings of both are read and compared. Image sizes are compared only for families whose tower takes
    one size, class tokens only for those whose processor counts them by these settings.

    ## What to do
    Use the processor of the same checkpoint as the model, or set its values from the model's configuration.
    """
    sizes = configuration.sizes
    pairs = {
        "patch size": (sizes.patch, sizes.tower_patch),
        "image size": (sizes.image, sizes.tower_image),
        "num_additional_image_tokens (minus the dropped class token)": (
            sizes.extra_tokens,
            sizes.tower_extra_tokens,
        ),
    }
    wrong = {what: pair for what, pair in pairs.items() if None not in pair and pair[0] != pair[1]}
    if not wrong:
        return
    yield Finding(
        "the processor does not match the vision tower: "
        + listed(f"{what}: {mine}, expected {tower}" for what, (mine, tower) in wrong.items()),
        Severity.ERROR,
        at=("processor", "config.vision_config"),
        measured={what: mine for what, (mine, _) in wrong.items()},
        threshold={what: tower for what, (_, tower) in wrong.items()},
        cause="the processor was made for another vision tower, or with its defaults",
        fix=Fix(
            "load both from one checkpoint, or take the processor's values from the model",
            (
                "processor.patch_size = model.config.vision_config.patch_size",
                "processor.vision_feature_select_strategy = model.config.vision_feature_select_strategy",
            ),
        ),
    )


@processor_misfit.bad
def class_token_that_is_none() -> Configuration:
    """SigLIP has no class token to drop."""
    return Configuration(sizes=ImageSizes(patch=14, tower_patch=14, extra_tokens=-1, tower_extra_tokens=0))


@processor_misfit.bad
def larger_crop() -> Configuration:
    return Configuration(sizes=ImageSizes(image=336, tower_image=224))


@processor_misfit.good
def clip() -> Configuration:
    return Configuration(
        sizes=ImageSizes(
            patch=14, tower_patch=14, image=336, tower_image=336, extra_tokens=0, tower_extra_tokens=0
        ),
        image_token_id=32000,
        placeholder_ids=(32000,),
    )
