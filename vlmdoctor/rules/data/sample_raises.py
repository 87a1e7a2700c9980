"""sample-raises: a sample of the dataset can't be read or collated."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data, Trouble
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data
from vlmdoctor.rules.places import counted


@rule("sample-raises", "DATA308")
def sample_raises(data: Data) -> Iterator[Finding]:
    """Dataset or collator raises on a sample.

    ## Why it matters
    The same exception ends a run hours later. Causes are broken image files ([ViLT
    55](https://github.com/dandelin/ViLT/issues/55)), images of extreme proportions ([Qwen-VL-Series-Finetune
    133](https://github.com/2U1/Qwen-VL-Series-Finetune/issues/133)), images that are not RGB, and columns
    that `remove_unused_columns` removes before the collator ([transformers
    27535](https://github.com/huggingface/transformers/issues/27535)).

    ## Confidence and false positives
    The exception is real. The collator got copies of some samples, spread over the dataset. That columns are
    missing is measured too: with these columns the same samples are collated.

    ## What to do
    Fix or drop the sample; for missing columns set `remove_unused_columns=False`.
    """
    if not data.samples and not data.troubles:
        raise Unavailable("no dataset was given")
    if not data.troubles:
        return
    first = data.troubles[0]
    others = len(data.troubles) - 1
    more = f" (and {counted(others, 'other')})" if others else ""
    if first.columns:
        message = f"remove_unused_columns removes what the collator needs: {', '.join(first.columns)}"
        cause = f"without these columns the collator raises {first.error}; with them it works"
        fix = Fix("keep the columns", ("TrainingArguments(..., remove_unused_columns=False)",))
    else:
        message = f"{first.name} can't be made into a batch: {first.error}{more}"
        cause = "raised by the dataset or the collator, on a copy of the sample"
        fix = Fix("fix the sample, or drop it from the dataset")
    yield Finding(
        message,
        Severity.ERROR,
        at=tuple(trouble.name for trouble in data.troubles[:4]),
        file=first.file,
        line=first.line,
        measured={"samples_read": data.samples, "troubles": len(data.troubles)},
        threshold={"troubles": 0},
        cause=cause,
        fix=fix,
        links=("https://github.com/huggingface/transformers/issues/27535",)
        if first.columns
        else ("https://github.com/2U1/Qwen-VL-Series-Finetune/issues/133",),
    )


@sample_raises.bad
def image_of_extreme_proportions() -> Data:
    trouble = Trouble(
        name="sample 12", error="ValueError: absolute aspect ratio must be smaller than 200, got 227.5"
    )
    return healthy_data(troubles=(trouble,), samples=12)


@sample_raises.bad
def column_taken_away() -> Data:
    trouble = Trouble(name="sample 0", error="KeyError: 'images'", columns=("images", "messages"))
    return healthy_data(troubles=(trouble,))


@sample_raises.good
def all_read() -> Data:
    return healthy_data(samples=16)
