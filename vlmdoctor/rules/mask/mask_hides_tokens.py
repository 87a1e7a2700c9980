"""mask-hides-tokens: the attention mask leaves out tokens that are no padding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data, Row
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data, sample_row

ROLES = {
    "image": "image placeholders",
    "user": "words of users",
    "assistant": "words of answers",
    "system": "words of the system",
    "other": "other tokens",
}
FEWEST = 2


@rule("mask-hides-tokens", "MASK302")
def mask_hides_tokens(data: Data) -> Iterator[Finding]:
    """Attention mask hides tokens of the text or of images.

    ## Why it matters
    No other token attends to what the mask hides. With image placeholders masked, the model answers without
    its images, and nothing raises. It happens when the mask is made from the ids by hand, before placeholders
    are inserted or expanded, or for another length ([LlamaFactory
    10782](https://github.com/hiyouga/LlamaFactory/issues/10782)).

    ## Confidence and false positives
    Mask and ids were compared position by position. Masked text at an end of a row is taken for padding, an
    image is not. It is an error if every placeholder of all images is hidden. Anything else is a warning,
    since some recipes hide words on purpose.

    ## What to do
    Take the mask from the same call that made the ids, or make it from the final ids.
    """
    rows = [row for row in data.rows if row.attended is not None]
    if not rows:
        raise Unavailable("the batch has no attention mask with one value for each token")
    hidden = Counter(
        role
        for row in rows
        for role, seen in zip(row.roles, row.attended or (), strict=True)
        if not seen and role in ROLES
    )
    if sum(hidden.values()) < FEWEST:
        return
    images = sum(row.count("image") for row in rows)
    all_images = images > 0 and hidden["image"] == images
    given = ", ".join(f"{number} {ROLES[role]}" for role, number in hidden.most_common(3))
    yield Finding(
        f"the attention mask hides {'every image' if all_images else given}",
        Severity.ERROR if all_images else Severity.WARNING,
        at=("attention_mask", *[row.name for row in rows if _hides(row)][:4]),
        measured={"hidden_tokens": dict(hidden), "image_tokens": images},
        threshold={"hidden_tokens": 0},
        cause="the mask is 0 at tokens that are no padding: it was not made from these ids",
        fix=Fix(
            "make the mask from the final ids",
            ("attention_mask = (input_ids != tokenizer.pad_token_id).long()",),
        ),
    )


def _hides(row: Row) -> bool:
    return any(not seen and role in ROLES for role, seen in zip(row.roles, row.attended or (), strict=True))


@mask_hides_tokens.bad
def images_hidden() -> Data:
    letters = "miiiiuuumAAASmpp"
    return sample_data(sample_row(letters, attended=tuple(letter not in "ip" for letter in letters)))


@mask_hides_tokens.good
def only_padding() -> Data:
    return healthy_data()


@mask_hides_tokens.good
def padding_on_the_left() -> Data:
    return sample_data("ppmiiiiuuumAAAS", "miiiiuuuuumAAAS")
