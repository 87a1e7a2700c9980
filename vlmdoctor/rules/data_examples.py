"""Small batches for the rules' examples, written as one letter for each token.

`m` marker, `y` system, `u` user, `a` assistant, `s` stop, `i` image, `p` padding, `o` other. A capital letter
is a token whose label is its own id; the others' labels are masked.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vlmdoctor.evidence.data import Data, Picture, Row, Words
from vlmdoctor.knowledge.labels import IGNORE_INDEX

_ROLES = {
    "m": "marker",
    "y": "system",
    "u": "user",
    "a": "assistant",
    "s": "stop",
    "i": "image",
    "p": "padding",
    "o": "other",
}
PADDING, STOP, IMAGE = 0, 2, 3
WORDS = Words(
    embedding_rows=100,
    head_rows=100,
    tokenizer_size=100,
    placeholder="<image>",
    placeholder_ids=(IMAGE,),
    image_ids=(IMAGE,),
    padding_id=PADDING,
    stop_ids=(STOP,),
    eos_ids=(STOP,),
    max_positions=64,
    names=((PADDING, "<pad>"), (STOP, "</s>"), (IMAGE, "<image>")),
)


def sample_row(letters: str, number: int = 0, **changes: Any) -> Row:
    """The row that `letters` spell."""
    special = {"i": IMAGE, "p": PADDING, "s": STOP, "m": 1}
    ids = tuple(special.get(letter.lower(), 10 + i) for i, letter in enumerate(letters))
    row = Row(
        origin="batch",
        name=f"row {number} of the batch",
        ids=ids,
        roles=tuple(_ROLES[letter.lower()] for letter in letters),
        labels=tuple(i if letter.isupper() else IGNORE_INDEX for i, letter in zip(ids, letters, strict=True)),
        attended=tuple(letter.lower() != "p" for letter in letters),
        roles_known="a" in letters.lower(),
    )
    return dataclasses.replace(row, **changes)


def sample_data(*rows: str | Row, **changes: Any) -> Data:
    """A batch of rows, one image of each row's placeholders among them."""
    made = tuple(sample_row(row, i) if isinstance(row, str) else row for i, row in enumerate(rows))
    known = any(row.roles_known for row in made)
    data = Data(
        rows=made,
        words=WORDS,
        roles_unknown=None if known else "the tokenizer has no chat template",
        template_marks_answers=True,
        tokenizer_given=True,
    )
    return dataclasses.replace(data, **changes)


def healthy_data(**changes: Any) -> Data:
    """Questions about images, answers supervised with their stop tokens, one text-only row, right padding."""
    return sample_data("miiiiuuumAAASmpp", "miiiiuumAASmpppp", "muuuuumAAAAASmpp", **changes)


def words(**changes: Any) -> Words:
    """The examples' vocabulary with some changes."""
    return dataclasses.replace(WORDS, **changes)


def sample_picture(number: int = 0, **changes: Any) -> Picture:
    """A picture that was normalised as its processor says."""
    picture = Picture(
        name=f"image {number} of the batch",
        low=-1.8,
        high=2.1,
        restored_low=0.0,
        restored_high=1.0,
        fits=(("declared", 1.0), ("CLIP's", 1.0), ("0.5 and 0.5", 0.04), ("none, from 0 to 1", 0.03)),
    )
    return dataclasses.replace(picture, **changes)
