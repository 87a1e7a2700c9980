"""tie-broken: the configuration ties two weights that are two tensors."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.config import Configuration, Tie
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import listed


@rule("tie-broken", "CFG301")
def tie_broken(configuration: Configuration) -> Iterator[Finding]:
    """Tied weights are not tied: the output head has its own copy of the embedding.

    ## Why it matters
    The two are trained separately, and loading or merging the result ties them again: the embedding
    overwrites the head and the model collapses, long after training. PEFT's `modules_to_save=["embed_tokens",
    "lm_head"]` unties them, and so does assigning a new parameter ([peft
    1750](https://github.com/huggingface/peft/issues/1750), [peft
    2803](https://github.com/huggingface/peft/issues/2803), [transformers
    45127](https://github.com/huggingface/transformers/issues/45127)).

    ## Confidence and false positives
    That the configuration ties them and that they are two tensors is read from the model. It is a warning,
    since a loader that finds both may keep both; nothing is reported where neither learns and the values are
    the same.

    ## What to do
    Tie them again (`model.tie_weights()`, PEFT's `ensure_weight_tying=True`), or set
    `tie_word_embeddings=False` in the configuration before saving.
    """
    broken = [tie for tie in configuration.ties if not tie.tied and (tie.trainable or tie.equal is False)]
    if not broken:
        return
    differ = any(tie.equal is False for tie in broken)
    yield Finding(
        f"the configuration ties {listed(f'{tie.target} to {tie.source}' for tie in broken)}, "
        f"but {'each has' if len(broken) > 1 else 'it has'} values of its own",
        Severity.WARNING,
        at=tuple(name for tie in broken for name in (tie.target, tie.source)),
        measured={"tied": False, "equal_values": not differ},
        threshold={"tied": True},
        cause="they are two tensors"
        + (" with different values" if differ else ", still equal, that will be trained separately")
        + "; whatever ties them again on loading or merging overwrites one with the other",
        fix=Fix(
            "tie them again, or set tie_word_embeddings=False in the configuration",
            ("model.tie_weights()", "model.config.tie_word_embeddings = False  # if that is intended"),
        ),
    )


def _tie(*, tied: bool, equal: bool) -> Configuration:
    return Configuration(
        ties=(
            Tie(
                target="lm_head.weight",
                source="model.embed_tokens.weight",
                tied=tied,
                equal=equal,
                trainable=True,
            ),
        )
    )


@tie_broken.bad
def trained_apart() -> Configuration:
    return _tie(tied=False, equal=False)


@tie_broken.good
def tied() -> Configuration:
    return _tie(tied=True, equal=True)
