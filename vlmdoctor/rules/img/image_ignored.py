"""image-ignored: a trained model is as accurate with shuffled images."""

from __future__ import annotations

import math
from collections.abc import Iterator

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Evaluation, Steps
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.knowledge.run_length import LONG, NEARLY_DONE
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters, sample_steps

FALLEN = 0.8  # of the first loss: below it the language was learned
LOSS_MARGIN = 0.02
ACCURACY_MARGIN = 0.05
SURE = 2.0  # standard errors
TELLING = 0.15  # a gain in accuracy that the examples must be able to rule out where no losses were compared
FEWEST = 30


@rule("image-ignored", "IMG101", explains=("accuracy-below-gate",))
def image_ignored(steps: Steps) -> Iterator[Finding]:
    """Images ignored: a trained model is as accurate with shuffled images as with the right ones.

    ## Why it matters
    A falling loss proves nothing: from the questions alone a model learns which answers are frequent, and its
    loss falls just as that of one trained on blank images. Only a comparison with shuffled images shows
    whether a model uses its images. Causes are detached features, a projector that was not saved or not
    loaded ([LLaVA 474](https://github.com/haotian-liu/LLaVA/issues/474),
    [784](https://github.com/haotian-liu/LLaVA/issues/784)), images that are blank after preprocessing, or an
    encoder that has not learned useful features yet.

    ## Confidence and false positives
    Both numbers come from the same unseen examples. It is reported only near the end of a run of at least 500
    steps whose loss has fallen by a fifth; only if shuffled or blank images raise the loss by less than 2%;
    and, where accuracy was measured, only if its gain is under 5 percentage points and within two standard
    errors of none. A run that was too short to learn from images is reported too, since at that point the two
    can't be distinguished. A model that has begun to use its images is not.

    ## What to do
    Look at one batch's `pixel_values` (are they all alike?), check that the image tokens' embeddings change
    with the image, that the projector's weights were loaded, and that the vision encoder is pretrained or
    trained along."""
    if not steps.evaluations or all(s.images == 0 for s in steps.steps):
        return
    last = steps.evaluations[-1]
    planned = steps.planned_steps
    done = steps.finished or (planned is not None and last.step + 1 >= NEARLY_DONE * planned)
    if not done or last.step + 1 < LONG or not _has_fallen(steps):
        return
    same_loss = _same_loss(last)
    same_answers = _same_answers(last)
    judged = [same for same in (same_loss, same_answers) if same is not None]
    if not judged or not all(judged):
        return
    numbers = {
        "accuracy": last.accuracy,
        "accuracy_shuffled": last.accuracy_shuffled,
        "loss": last.loss,
        "loss_shuffled": last.loss_shuffled,
        "loss_blank": last.loss_blank,
        "samples": last.samples,
    }
    parts = []
    if same_answers is not None:
        parts.append(
            f"accuracy {_percent(last.accuracy)}, {_percent(last.accuracy_shuffled)} with shuffled images"
        )
    if same_loss is not None:
        blank = "" if last.loss_blank is None else f", {last.loss_blank:.4g} with blank ones"
        parts.append(f"loss {last.loss:.4g} and {last.loss_shuffled:.4g}{blank}")
    yield Finding(
        f"images are ignored: {'; '.join(parts)}",
        Severity.ERROR,
        at=("images",),
        measured={key: value for key, value in numbers.items() if value is not None},
        threshold={"loss_margin": LOSS_MARGIN, "accuracy_margin": ACCURACY_MARGIN},
        cause=(
            "what the model answers does not depend on the image; the fall of its loss came from the "
            "text alone. "
            "Whether the images are empty, detached on their way or not learned yet was not established"
        ),
        certainty=Certainty.INFERRED,
        fix=Fix(
            (
                "check whether the pixels differ between samples and reach the text; if they do, train the "
                "encoder first or longer"
            ),
            ('print(batch["pixel_values"].flatten(1).std(0).mean())  # about 0: all images are equal',),
        ),
        step=last.step,
    )


def _has_fallen(steps: Steps) -> bool:
    losses = [loss for _, loss in steps.losses if math.isfinite(loss)]
    tenth = max(1, len(losses) // 20)
    return bool(losses) and sum(losses[-tenth:]) < FALLEN * sum(losses[:tenth])


def _same_loss(last: Evaluation) -> bool | None:
    if last.loss is None or last.loss_shuffled is None or not math.isfinite(last.loss + last.loss_shuffled):
        return None
    # Any image disturbs a model trained on blank ones: a wrong one may raise the loss a little more than
    # the right one. Blank ones are as good then.
    without = [other for other in (last.loss_shuffled, last.loss_blank) if other is not None]
    return min(without) - last.loss < LOSS_MARGIN * abs(last.loss)


def _same_answers(last: Evaluation) -> bool | None:
    if last.accuracy is None or last.accuracy_shuffled is None or (last.samples or 0) < FEWEST:
        return None
    with_images, without, count = last.accuracy, last.accuracy_shuffled, last.samples or 1
    if not (0 <= with_images <= 1 and 0 <= without <= 1):
        return None
    error = math.sqrt((with_images * (1 - with_images) + without * (1 - without)) / count)
    gain = with_images - without
    if last.loss_shuffled is None and gain + SURE * error > TELLING:
        return None  # too few examples to say it from the answers alone
    return gain < 0.005 or (gain < ACCURACY_MARGIN and gain < SURE * error)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.1%}"


@image_ignored.bad
def trained_on_blank_images() -> tuple[Parameters, Steps]:
    seen = Evaluation(
        step=1999, loss=1.31, loss_shuffled=1.312, accuracy=0.11, accuracy_shuffled=0.108, samples=1000
    )
    return sample_parameters(), sample_steps(2000, every=100, evaluations=(seen,))


@image_ignored.bad
def trained_on_blank_images_and_disturbed_by_pictures() -> tuple[Parameters, Steps]:
    seen = Evaluation(
        step=1499,
        loss=1.449,
        loss_shuffled=1.491,
        loss_blank=1.042,
        accuracy=0.063,
        accuracy_shuffled=0.05,
        samples=300,
    )
    return sample_parameters(), sample_steps(1500, every=100, evaluations=(seen,))


@image_ignored.good
def looks() -> tuple[Parameters, Steps]:
    seen = Evaluation(
        step=1999, loss=0.2, loss_shuffled=3.9, accuracy=0.95, accuracy_shuffled=0.1, samples=300
    )
    return sample_parameters(), sample_steps(2000, every=100, evaluations=(seen,))


@image_ignored.good
def too_early_to_say() -> tuple[Parameters, Steps]:
    seen = Evaluation(
        step=39, loss=2.31, loss_shuffled=2.312, accuracy=0.0, accuracy_shuffled=0.0, samples=300
    )
    return sample_parameters(), sample_steps(40, evaluations=(seen,))
