"""token-types: the model does not get which tokens attend in both directions."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data, Row
from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data, sample_row

LINKS = {
    "gemma3": (
        "https://github.com/huggingface/trl/issues/5807",
        "https://github.com/huggingface/transformers/issues/39389",
    ),
    "paligemma": (
        "https://github.com/huggingface/transformers/issues/30987",
        "https://github.com/huggingface/transformers/issues/35200",
    ),
}
# The type of the tokens with bidirectional attention.
BOTH_WAYS = {"gemma3": 1, "paligemma": 0}


@rule("token-types", "MASK301", explains=("future-leak",))
def token_types(data: Data, influence: Influence | None) -> Iterator[Finding]:
    """`token_type_ids` missing or constant in a model whose attention needs them.

    ## Why it matters
    In Gemma 3 the tokens of an image attend to each other in both directions, in PaliGemma those of the image
    and the prompt. `token_type_ids` says which tokens these are. Without them attention is causal throughout,
    and since transformers 5.6 nothing raises ([TRL 5807](https://github.com/huggingface/trl/issues/5807)):
    the model is trained with another mask than it was pretrained with. In PaliGemma, answers of type 0 are
    visible before they are predicted ([transformers
    30987](https://github.com/huggingface/transformers/issues/30987)).

    ## Confidence and false positives
    The types were compared with the ids and the labels. Labels inside the bidirectional part are an error:
    the answer is visible to its own prediction. The rest is a warning. PaliGemma's types being all 1 is only
    reported for data that came with a tokenizer, since hand-made batches use it for plain causal attention.
    Other models are not judged.

    ## What to do
    Keep what the processor returns: for PaliGemma give the answer as `suffix=`.
    """
    key, model = data.types_wanted, data.model_type
    if key is None:
        raise Unavailable("the model takes no token types for its mask")
    if not data.rows:
        raise Unavailable("no input_ids were given")
    rows = [row for row in data.rows if row.count("image")]
    both_ways = BOTH_WAYS[model]
    leaking = [row for row in rows if model == "paligemma" and _leaks(row, both_ways)]
    if leaking:
        yield _finding(
            data,
            "answers attend to themselves: they are supervised and in the bidirectional part",
            Severity.ERROR,
            leaking,
            f"{key} is {both_ways} at labels, which makes attention bidirectional there",
        )
        return
    missing = [row for row in rows if row.types is None]
    later = None if influence is None else influence.changes.get("later-token")
    if missing and model == "paligemma" and later is not None and later.moves:
        yield _finding(
            data,
            f"{key} is missing, and answers attend to later tokens",
            Severity.ERROR,
            missing,
            "a collator or a list of columns dropped it; without it the whole text is taken for the prompt, "
            "whose attention is bidirectional",
        )
        return
    if missing:
        yield _finding(
            data,
            f"{key} is missing: {model}'s attention is causal inside images too",
            Severity.WARNING,
            missing,
            "a collator or a list of columns dropped it; without it the mask is causal throughout",
        )
        return
    alike = [row for row in rows if both_ways not in (row.types or ())]
    if alike and len(alike) == len(rows) and (data.tokenizer_given or model == "gemma3"):
        yield _finding(
            data,
            f"{key} is never {both_ways}: {model}'s attention is causal inside images too",
            Severity.WARNING,
            alike,
            "it was filled with one value instead of being taken from the processor",
        )


def _leaks(row: Row, both_ways: int) -> bool:
    """Whether several labels are where attention is bidirectional."""
    if row.types is None:
        return False
    inside = (t == both_ways and seen for t, seen in zip(row.types, row.seen, strict=False))
    return sum(inside) > 1


def _finding(data: Data, message: str, severity: Severity, rows: list[Row], cause: str) -> Finding:
    values = sorted({t for row in rows for t in row.types or ()})
    return Finding(
        message,
        severity,
        at=(data.types_wanted or "", *(row.name for row in rows[:4])),
        measured={"rows_with_images": len(rows), "types": values},
        cause=cause,
        fix=Fix(
            "pass on what the processor returns",
            ('inputs = processor(text=prompt, images=image, suffix=answer, return_tensors="pt")',)
            if data.model_type == "paligemma"
            else ("batch['token_type_ids'] = inputs['token_type_ids']",),
        ),
        links=LINKS[data.model_type],
    )


def _as(model: str, *rows: Row) -> Data:
    return sample_data(*rows, types_wanted="token_type_ids", model_type=model)


@token_types.bad
def dropped_by_the_collator() -> Data:
    return _as("gemma3", sample_row("miiiiuuumAAAS"))


@token_types.bad
def the_answer_sees_itself() -> Data:
    return _as("paligemma", sample_row("iiiiuuuAAAS", types=(0,) * 11))


@token_types.bad
def dropped_and_seen() -> tuple[Data, Influence]:
    moved = Change(
        what="token 10 of row 0",
        moved=0.02,
        allowed=4e-6,
        effect=0.4,
        positions=3,
        moved_positions=3,
        row=0,
        position=9,
    )
    return _as("paligemma", sample_row("iiiiuuuAAAS")), Influence(changes={"later-token": moved})


@token_types.good
def from_the_processor() -> Data:
    return _as("paligemma", sample_row("iiiiuuuAAAS", types=(0,) * 7 + (1,) * 4))


@token_types.good
def images_marked() -> Data:
    return _as("gemma3", sample_row("miiiiuuumAAAS", types=(0, 1, 1, 1, 1) + (0,) * 8))


@token_types.good
def another_model() -> Data:
    return healthy_data(types_wanted="token_type_ids", model_type="gemma3", rows=(sample_row("muumAAS"),))
