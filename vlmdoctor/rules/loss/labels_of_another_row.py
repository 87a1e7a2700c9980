"""labels-of-another-row: the labels of a text belong to another text of the batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data, Row
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data, sample_row

SHIFTS = (0, 1)  # the labels are at their own ids, or were shifted by the data
OWN_AT_MOST, OTHER_AT_LEAST = 0.5, 0.95
FEWEST, KINDS = 4, 3  # labels, and different ones among them


@rule("labels-of-another-row", "LOSS340", explains=("initial-loss",))
def labels_of_another_row(data: Data) -> Iterator[Finding]:
    """Labels of another row: texts and answers are exchanged.

    ## Why it matters
    The loss falls by what answers have in common, and then stops falling, since a text says nothing about
    another row's answer. It happens where ids and labels are shuffled, sorted by length or batched separately
    ([VLM-R1 263](https://github.com/om-ai-lab/VLM-R1/issues/263) lost the pairing of texts and images in that
    way).

    ## Confidence and false positives
    Labels and ids were compared token by token. It is an error where at most half of a row's labels are its
    own tokens, and at least 95% are those of one other row at the same positions. Encoder-decoders and rows
    with fewer than four labels are not judged.

    ## What to do
    Make ids and labels of one sample in one function, and shuffle or sort them together.
    """
    rows = [row for row in data.labelled if row.labels is not None and len(row.labels) == len(row.ids)]
    if len(rows) < 2:
        raise Unavailable("there are not two rows of labels beside input_ids")
    exchanged = []
    for row in rows:
        others = [other for other in rows if other is not row and other.origin == row.origin]
        shown = [label for label in row.labels or () if label != IGNORE_INDEX]
        if len(shown) < FEWEST or len(set(shown)) < KINDS or _share(row, row.ids) > OWN_AT_MOST:
            continue
        found = next((other for other in others if _share(row, other.ids) >= OTHER_AT_LEAST), None)
        if found is not None:
            exchanged.append((row, found))
    if not exchanged:
        return
    row, found = exchanged[0]
    yield Finding(
        f"the labels of {len(exchanged)} of {len(rows)} rows are another row's: those of {row.name} are the "
        f"tokens of {found.name}",
        Severity.ERROR,
        at=("labels", *(f"{one.name} has those of {other.name}" for one, other in exchanged[:4])),
        measured={
            "rows": len(exchanged),
            "labels_of_own_row": _share(row, row.ids),
            "labels_of_the_other": _share(row, found.ids),
        },
        threshold={"labels_of_own_row": 1.0},
        cause="ids and labels are in different orders; where that happened was not established",
        certainty=Certainty.INFERRED,
        fix=Fix(
            "make ids and labels of a sample together, and keep them together",
            ("batch = collate([{'input_ids': s['input_ids'], 'labels': s['labels']} for s in samples])",),
        ),
    )


def _share(row: Row, ids: Sequence[int]) -> float:
    """The share of a row's labels that are `ids` at their positions, by the better of the usual shifts."""
    shares = []
    for shift in SHIFTS:
        pairs = [
            (label, ids[at + shift])
            for at, label in enumerate(row.labels or ())
            if label != IGNORE_INDEX and at + shift < len(ids)
        ]
        shares.append(sum(label == token for label, token in pairs) / len(pairs) if pairs else 0.0)
    return max(shares)


def _numbered(number: int, labels_of: int) -> Row:
    """Row `number` of 16 tokens, eight of which are supervised, with the labels of row `labels_of`."""
    ids, own = ((*range(20 + 20 * row, 35 + 20 * row), 2) for row in (number, labels_of))
    labels = (*(IGNORE_INDEX,) * 8, *own[8:])
    return sample_row("oooooooOOOOOOOOO", number, roles_known=False, ids=ids, labels=labels)


@labels_of_another_row.bad
def two_exchanged() -> Data:
    return sample_data(_numbered(0, 1), _numbered(1, 0), _numbered(2, 2))


@labels_of_another_row.good
def each_its_own() -> Data:
    return healthy_data()
