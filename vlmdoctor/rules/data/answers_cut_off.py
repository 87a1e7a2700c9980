"""answers-cut-off: many samples are truncated at the maximum length, inside their answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vlmdoctor.evidence.data import Data, Row
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data

OFTEN, FEWEST = 0.2, 3


@rule("answers-cut-off", "DATA306", explains=("stop-token-not-supervised",))
def answers_cut_off(data: Data) -> Iterator[Finding]:
    """Answers truncated at the maximum length.

    ## Why it matters
    What is truncated is not learned: the ends of long answers, their stop tokens, and the whole answer where
    the prompt alone fills the length ([TRL 6668](https://github.com/huggingface/trl/issues/6668),
    [llama-cookbook 133](https://github.com/meta-llama/llama-cookbook/issues/133)). The loss looks as usual.

    ## Confidence and false positives
    At least three rows, a fifth of all, have exactly the same, largest length and end without a stop token,
    while other rows end with one. The speakers are identified by the template's own markers. That the rows
    were truncated is inferred from that; it is a warning.

    ## What to do
    Raise the maximum length, or drop such samples; look at how many there are first.
    """
    rows = [row for row in data.needing_roles() if row.roles_known]
    longest, often = Counter(row.length for row in rows).most_common(1)[0]
    if longest < max(row.length for row in rows):
        return
    cut = [row for row in rows if row.length == longest and not _ended(row)]
    whole = [row for row in rows if row.length < longest and _ended(row)]
    if len(cut) < FEWEST or len(cut) < often or len(cut) < OFTEN * len(rows) or not whole:
        return
    empty = sum(not any(row.seen) for row in cut)
    yield Finding(
        f"{len(cut)} of {len(rows)} conversations are truncated at {longest} tokens"
        + (f"; {empty} of them have no supervised token left" if empty else ""),
        Severity.WARNING,
        at=tuple(row.name for row in cut[:4]),
        measured={"cut": len(cut), "with_an_end": len(whole), "without_labels": empty},
        threshold={"share_of_rows": OFTEN},
        cause=f"they all have {longest} tokens and no stop token at their end, as after truncation",
        fix=Fix("raise the maximum length, or drop what does not fit"),
    )


def _ended(row: Row) -> bool:
    """Whether the last turn ended: by a stop token, or by the end token of a turn."""
    inside = [role for role in row.roles if role != "padding"]
    return bool(inside) and inside[-1] in ("stop", "marker")


@answers_cut_off.bad
def at_fourteen_tokens() -> Data:
    return sample_data(
        "miiiiuuumAAAAA", "miiiiuumAAAAAA", "miiiiuuuuumAAA", "miiiiuumAASmpp", "muumAASmpppppp"
    )


@answers_cut_off.good
def all_end() -> Data:
    return healthy_data()


@answers_cut_off.good
def one_is_longer_than_allowed() -> Data:
    return sample_data("miiiiuuumAAAAA", "miiiiuumAASmpp", "miiiiuuumASmpp", "muumAASmpppppp")
