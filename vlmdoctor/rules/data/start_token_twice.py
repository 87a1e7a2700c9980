"""start-token-twice: texts begin with two start tokens."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.data import Data, Row
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data, words


@rule("start-token-twice", "DATA309")
def start_token_twice(data: Data) -> Iterator[Finding]:
    """Start token (BOS) twice at the beginning of every text.

    ## Why it matters
    A chat template writes the start token, and the tokenizer that is called on the rendered text adds its own
    ([mlx-examples 1095](https://github.com/ml-explore/mlx-examples/issues/1095), [OpenRLHF
    393](https://github.com/OpenRLHF/OpenRLHF/issues/393), [DeepSeek-R1
    151](https://github.com/deepseek-ai/DeepSeek-R1/issues/151)). At inference the text begins with one of
    them, which the model never saw in training.

    ## Confidence and false positives
    Ids are counted; the start token is the tokenizer's or the configuration's. Left padding is skipped, and a
    start token that is also the padding or stop token is not judged. It is a warning, since the model may
    have been trained so before.

    ## What to do
    Tokenize rendered chats with `add_special_tokens=False`, or render and tokenize in one call.
    """
    start = data.words.start_id
    if start is None or start in (data.words.padding_id, *data.words.stop_ids, *data.words.eos_ids):
        return
    twice = [row for row in data.rows if _first_two(row) == (start, start)]
    if not twice or len(twice) * 2 <= len(data.rows):
        return
    yield Finding(
        f"{len(twice)} of {len(data.rows)} texts begin with the start token twice ({start}, {start})",
        Severity.WARNING,
        at=tuple(row.name for row in twice[:4]),
        measured={"twice": len(twice), "rows": len(data.rows), "start_token": start},
        threshold={"twice": 0},
        cause="the chat template writes the start token, and the tokenizer adds its own",
        fix=Fix(
            "let the tokenizer add no special tokens to the rendered template",
            ("tokenizer(text, add_special_tokens=False)",),
        ),
    )


def _first_two(row: Row) -> tuple[int, ...]:
    kept = [i for i, role in zip(row.ids, row.roles, strict=True) if role != "padding"]
    return tuple(kept[:2])


@start_token_twice.bad
def added_by_template_and_tokenizer() -> Data:
    return sample_data("mmiiiiuumAAAS", "mmuumAAS", words=words(start_id=1))


@start_token_twice.good
def once() -> Data:
    return healthy_data(words=words(start_id=1))
