"""checkpoint-part-missing: weights that the checkpoint does not hold and that look freshly initialised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlmdoctor.evidence.checkpoint import Checkpoint, Weight
from vlmdoctor.evidence.reach import PATH
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.ckpt._healthy import ABSENT, called, sample_checkpoint, share
from vlmdoctor.rules.places import counted, listed, places


@rule(
    "checkpoint-part-missing",
    "CKPT102",
    explains=("initial-loss", "loss-not-falling", "image-ignored", "accuracy-below-gate"),
)
def checkpoint_part_missing(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Weights missing from the checkpoint: the model starts with random ones.

    ## Why it matters
    A projector that was not saved, or not loaded with the adapters, gives a model that writes well and
    ignores the images ([LLaVA 474](https://github.com/haotian-liu/LLaVA/issues/474), [lmms-finetune
    53](https://github.com/zjysteven/lmms-finetune/issues/53)); the only sign is a line "newly initialized"
    among many ([LLaVA-Rad 25](https://github.com/microsoft/LLaVA-Rad/issues/25)).

    ## Confidence and false positives
    That the checkpoint has no tensor of their names is certain, and that their values look like those of a
    new module is measured (a uniform distribution up to 1/sqrt(inputs), or a normal one of deviation 0.02).
    The same holds where an unused tensor of the checkpoint has the same shape, the same end of its name, and
    unrelated values. Whether that is intended is not known, so it is a warning. Nothing is reported where the
    checkpoint is one of a single part, such as a language model that becomes a vision-language model, and
    where the values look trained.

    ## What to do
    If the part is new, nothing. Otherwise save it too (`modules_to_save`, `non_lora_trainables.bin`) and
    load it before training.
    """
    weights = [w for w in checkpoint.weights if not w.adapter and w.role != "other"]
    fresh = [w for w in weights if w.key is None and w.fresh]
    roles = {role: [w for w in fresh if w.role == role] for role in PATH}
    held = {w.role for w in weights if w.key is not None}
    whole = [role for role, found in roles.items() if found and role not in held]
    if checkpoint.adapter_only:
        # The base is another checkpoint: only what an adapter's run would have trained with it is expected.
        whole = [role for role in whole if role == "projector"]
    elif not _whole_model(held, whole):
        return
    if whole:
        yield _finding(
            checkpoint,
            f"the checkpoint has no weights for {listed(called(role) for role in whole)}, which "
            f"{_seen(checkpoint, len(whole))} newly initialised",
            [w for role in whole for w in roles[role]],
            weights,
        )
        return
    renamed = [w for w in weights if w.alike is not None]
    strays = [w for role in PATH if role != "head" for w in roles[role] if role in held]
    if len(renamed) > len(strays):
        yield _finding(
            checkpoint,
            f"{counted(len(renamed), 'tensor')} of the model {'is' if len(renamed) == 1 else 'are'} in the "
            f"checkpoint under other names only, and {'was' if len(renamed) == 1 else 'were'} not loaded",
            renamed,
            weights,
        )
    elif strays:
        yield _finding(
            checkpoint,
            f"the checkpoint has no weights for {counted(len(strays), 'tensor')}, which "
            f"{_seen(checkpoint, len(strays))} newly initialised",
            strays,
            weights,
        )


def _seen(checkpoint: Checkpoint, count: int) -> str:
    if checkpoint.laid_out:
        return "will be"
    return "look" if count > 1 else "looks"


def _whole_model(held: set[str], whole: Sequence[str]) -> bool:
    """Whether the checkpoint is one of the whole model, and not of one part."""
    if not whole:
        return True
    if whole == ["head"]:
        return "language" in held
    return len(held & {"vision", "projector", "language"}) >= 2


def _finding(
    checkpoint: Checkpoint, message: str, fresh: Sequence[Weight], weights: Sequence[Weight]
) -> Finding:
    return Finding(
        message,
        Severity.WARNING,
        at=places([w.name for w in fresh], [w.name for w in weights if w.key is None]),
        measured={
            "checkpoint": checkpoint.shown,
            "newly_initialised": sum(bool(w.fresh) for w in fresh),
            "under_other_names": sum(w.alike is not None for w in fresh),
            "share_of_the_model": round(share(fresh, weights), 4),
            "all_tensors": checkpoint.counts(),
        },
        threshold={"newly_initialised": 0, "under_other_names": 0},
        cause=f"the checkpoint has no tensor with such names{_alike(fresh)}; assumed, not known: that they "
        "should not be new",
        fix=Fix("save and load these weights too; nothing, if they are new on purpose"),
    )


def _alike(fresh: Sequence[Weight]) -> str:
    pair = next((w for w in fresh if w.alike is not None), None)
    if pair is None:
        return ", nor under another prefix"
    count = sum(w.alike is not None for w in fresh)
    return (
        f" ({counted(count, 'tensor')} of the same shape ends alike: '{pair.alike}' may be meant for "
        f"'{pair.name}')"
    ).replace("tensors of the same shape ends", "tensors of the same shapes end")


@checkpoint_part_missing.bad
def renamed_in_the_middle() -> Checkpoint:
    return sample_checkpoint(
        lambda w: ABSENT | {"alike": w.name.replace("layers", "blocks")} if "lm.layers.7" in w.name else {}
    )


@checkpoint_part_missing.bad
def projector_not_saved() -> Checkpoint:
    return sample_checkpoint(lambda w: ABSENT if w.role == "projector" else {})


@checkpoint_part_missing.bad
def deeper_than_the_checkpoint() -> Checkpoint:
    return sample_checkpoint(lambda w: ABSENT if "lm.layers.7" in w.name else {})


@checkpoint_part_missing.good
def language_model_gets_eyes() -> Checkpoint:
    """The checkpoint is that of a language model: vision encoder and projector are new by plan."""
    return sample_checkpoint(lambda w: ABSENT if w.role in ("projector", "vision") else {})


@checkpoint_part_missing.good
def tower_from_elsewhere() -> Checkpoint:
    return sample_checkpoint(lambda w: ABSENT | {"fresh": False} if w.role == "vision" else {})
