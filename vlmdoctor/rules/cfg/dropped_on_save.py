"""dropped-on-save: shared weights that save_pretrained drops or refuses."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.config import Configuration
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import listed

LINKS = (
    "https://github.com/unslothai/unsloth/issues/1105",
    "https://github.com/safetensors/safetensors/issues/98",
    "https://github.com/hiyouga/LlamaFactory/issues/10137",
)


@rule("dropped-on-save", "CFG302", formerly=("lost-on-saving",))
def dropped_on_save(configuration: Configuration) -> Iterator[Finding]:
    """Shared weights dropped or refused by `save_pretrained`.

    ## Why it matters
    safetensors writes each memory once. Where the configuration does not declare that two names are one
    weight, saving ends the run at its first checkpoint ([unsloth
    1105](https://github.com/unslothai/unsloth/issues/1105), [LlamaFactory
    10137](https://github.com/hiyouga/LlamaFactory/issues/10137)), or leaves one name out, and loading fills
    it with random values.

    ## Confidence and false positives
    transformers' own step that removes shared weights was run on the state dict, without writing anything.
    A warning, since a run may save by other means (`torch.save` keeps shared memory).

    ## What to do
    Set `tie_word_embeddings=True` where weights are shared on purpose; otherwise give each its own copy.
    """
    if configuration.save_error is not None:
        yield Finding(
            "save_pretrained will raise: weights share memory that the model does not declare as tied",
            Severity.WARNING,
            measured={"raised": configuration.save_error},
            threshold={"raised": None},
            cause="several names share one memory, and the model's list of tied weights has none of them",
            fix=Fix("give each its own copy, or declare them in _tied_weights_keys"),
            links=LINKS,
        )
    elif configuration.dropped:
        yield Finding(
            f"{listed(configuration.dropped)} will be left out on saving and random after loading",
            Severity.WARNING,
            at=configuration.dropped,
            measured={"left_out": list(configuration.dropped)},
            threshold={"left_out": []},
            cause="it shares memory with another weight, so that save_pretrained writes one of the two, and "
            "the configuration does not say that they are tied, so that from_pretrained does not fill it",
            fix=Fix(
                "say that they are tied, or give it a copy of its own",
                ("model.config.tie_word_embeddings = True  # and in a text configuration",),
            ),
            links=LINKS,
        )


@dropped_on_save.bad
def tied_by_hand() -> Configuration:
    return Configuration(dropped=("lm_head.weight",))


@dropped_on_save.bad
def one_layer_twice() -> Configuration:
    return Configuration(save_error="The weights trying to be saved contained shared tensors [{…}]")


@dropped_on_save.good
def nothing_shared() -> Configuration:
    return Configuration(vocab_size=128, embedding_rows=128, head_rows=128)
