"""stop-token-not-eos: answers end with a token that does not end generation."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.data import Data
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data, words


@rule("stop-token-not-eos", "DATA301")
def stop_token_not_eos(data: Data) -> Iterator[Finding]:
    """Stop token of the answers is not an EOS token of generation.

    ## Why it matters
    Training goes well, and every evaluation that generates runs into its token limit: the model writes its
    stop token, and generation goes on. nanoVLM's score did not improve for that reason ([nanoVLM
    195](https://github.com/huggingface/nanoVLM/issues/195): the configuration said 0, the chat template ended
    with 2).

    ## Confidence and false positives
    The ends of the answers were found in the tokens of this data, and are supervised. What generation stops
    at is read from `model.generation_config`, else from `model.config`. It is a warning, since a call of
    `generate` can name its own stop tokens.

    ## What to do
    Add the token to the configuration's `eos_token_id`, which may be a list.
    """
    rows = data.needing_roles()
    ends = {row.ids[i] for row in rows for i, role in enumerate(row.roles) if role == "stop" and row.seen[i]}
    known = set(data.words.eos_ids)
    if not ends or not known or ends & known:
        return
    # The end token itself: the intended one may be a token after it.
    token = next((i for i in data.words.stop_ids if i in ends), min(ends))
    stops_at = " or ".join(data.words.named(i) for i in sorted(known))
    yield Finding(
        f"answers end with {data.words.named(token)}, but the model stops generating at {stops_at}",
        Severity.WARNING,
        at=("generation_config.eos_token_id",),
        measured={"ends_of_answers": sorted(ends), "eos_token_id": sorted(known)},
        cause="the configuration's EOS token is not the end token of the data's chat template",
        fix=Fix(
            "add the learned token to the EOS tokens of generation",
            (f"model.generation_config.eos_token_id = {sorted({*known, token})}",),
        ),
    )


@stop_token_not_eos.bad
def another_end_of_text() -> Data:
    return sample_data("miiiiuuumAAASmpp", "miiiiuumAASmpppp", words=words(eos_ids=(0,)))


@stop_token_not_eos.good
def the_same() -> Data:
    return healthy_data()


@stop_token_not_eos.good
def one_of_several() -> Data:
    return healthy_data(words=words(eos_ids=(7, 2)))
