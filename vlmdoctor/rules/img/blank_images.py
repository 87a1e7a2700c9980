"""blank-images: every pixel of the images is exactly 0."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters, sample_steps

SAMPLES = 4
_FIRST_LAYER = re.compile(r"patch_?embed|patch_conv|stem|conv1|conv_in|embeddings")


@rule(
    "blank-images",
    "IMG102",
    explains=(
        "pixels-not-usable",
        "image-ignored",
        "image-without-effect",
        "image-adds-nothing",
        "no-gradient",
        "accuracy-below-gate",
    ),
)
def blank_images(parameters: Parameters, steps: Steps) -> Iterator[Finding]:
    """Images blank during training: every pixel is exactly 0.

    ## Why it matters
    A wrong path that yields an empty image, a placeholder for missing files, or pixel values that were
    rescaled twice and rounded give blank images, and training goes on as if nothing were wrong.

    ## Confidence and false positives
    The gradient of the vision encoder's first weights is a product with the pixels. It was exactly zero in
    all sampled steps, at least four, although later layers got a gradient: so every pixel was 0. Images of
    one solid colour other than 0 are not noticed here. Why they are blank is not established.

    ## What to do
    Look at the pixels of one batch, and then at what loads and preprocesses the images.
    """
    tracks = {track.name: track for track in steps.tracks}
    tower = [p for p in parameters.parameters if p.role == "vision" and p.requires_grad and p.name in tracks]
    first = [p for p in tower if not p.layer and len(p.shape) >= 4 and _FIRST_LAYER.search(p.name)]
    first = first[:1] or [p for p in tower if re.search(r"patch_?embed.*weight", p.name)][:1]
    behind = [p for p in tower if p.layer and tracks[p.name].with_gradient > tracks[p.name].zero_gradient]
    if not first or not behind:
        return
    track = tracks[first[0].name]
    if track.with_gradient < SAMPLES or track.zero_gradient < track.with_gradient:
        return
    yield Finding(
        "images are blank: every pixel is 0",
        Severity.ERROR,
        at=("pixel_values", track.name),
        measured={"sampled_steps": track.with_gradient, "with_gradient_not_zero": 0},
        threshold={"with_gradient_not_zero": 1},
        cause=(
            f"the gradient of {track.name} is exactly zero while later layers get one, "
            f"which is so only if all pixels are 0; what made them so was not established"
        ),
        certainty=Certainty.INFERRED,
        fix=Fix(
            "look at one batch, then at what loads and preprocesses the images",
            ('print(batch["pixel_values"].min(), batch["pixel_values"].max())',),
        ),
    )


@blank_images.bad
def nothing_to_see() -> tuple[Parameters, Steps]:
    parameters = sample_parameters(lambda p: {"shape": (64, 3, 4, 4)} if "patch_embed" in p.name else {})
    run = sample_steps(
        60, track=lambda t: {"zero_gradient": t.samples, "moved": 0} if "patch_embed" in t.name else {}
    )
    return parameters, run


@blank_images.good
def first_step_only() -> tuple[Parameters, Steps]:
    run = sample_steps(60, track=lambda t: {"zero_gradient": 1} if "patch_embed" in t.name else {})
    return sample_parameters(), dataclasses.replace(run, finished=False)
