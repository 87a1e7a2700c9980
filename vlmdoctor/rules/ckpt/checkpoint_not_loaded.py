"""checkpoint-not-loaded: the model does not have the values of the checkpoint that was named."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence

from vlmdoctor.evidence.checkpoint import SAME_PART, Checkpoint, Weight
from vlmdoctor.evidence.reach import PATH
from vlmdoctor.finding import Finding, Fix, Inferred, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.ckpt._healthy import NOT_LOADED, called, sample_checkpoint, share
from vlmdoctor.rules.places import counted, listed, places

MOST_OF_A_PART = 0.5
CHANCE = 0.1  # of the tensors: so few names can agree by chance


@rule(
    "checkpoint-not-loaded",
    "CKPT101",
    explains=(
        "checkpoint-part-missing",
        "initial-loss",
        "loss-not-falling",
        "image-ignored",
        "accuracy-below-gate",
    ),
)
def checkpoint_not_loaded(checkpoint: Checkpoint) -> Iterator[Finding]:
    """Checkpoint not loaded: weights differ from those of the named checkpoint.

    ## Why it matters
    `load_state_dict(strict=False)` with one prefix too many silently loads nothing; the run then trains a
    random model, with a loss near that of guessing ([minimind-v
    75](https://github.com/jingyaogong/minimind-v/issues/75)), or a language model with a random projector
    ([LLaVA-Rad 25](https://github.com/microsoft/LLaVA-Rad/issues/25), [LLaVA
    474](https://github.com/haotian-liu/LLaVA/issues/474)).

    ## Confidence and false positives
    A few thousand values of every tensor are compared with the checkpoint's, under the names that a loader
    would use and, where none matches, under names that differ only by a prefix. Values that are unrelated
    (correlation under 0.5 and far apart) were not loaded: an error where that holds for most of a part of the
    model, a warning for single tensors. Where a few tensors of a part have other names and unrelated values,
    the match is not certain: they are reported as missing (`checkpoint-part-missing`). Weights that were
    trained since remain related and are not reported. Names alone, without values to compare, are a warning.

    ## What to do
    Load with `strict=True`, or look at what `load_state_dict` returns; remove or add the prefix that the
    finding names.
    """
    weights = [w for w in checkpoint.weights if w.adapter or not checkpoint.adapter_only]
    present = [w for w in weights if w.key is not None]
    if checkpoint.adapter_only and not weights:
        yield _no_adapters(checkpoint)
        return
    if not checkpoint.adapter_only and _strangers(checkpoint, present):
        yield _nothing(checkpoint, len(present))
        return
    by_role = {role: [w for w in present if w.role == role] for role in (*PATH, "other")}
    compared = {role: [w for w in found if w.loaded is not None] for role, found in by_role.items()}
    wrong = {role: [w for w in found if not w.loaded] for role, found in compared.items()}
    whole = [
        role for role in compared if wrong[role] and share(wrong[role], compared[role]) >= MOST_OF_A_PART
    ]
    if whole:
        yield _not_loaded(checkpoint, whole, [w for role in whole for w in wrong[role]], weights)
    elif single := [w for found in wrong.values() for w in found]:
        yield _single(checkpoint, single, present)
    elif present and not any(compared.values()):
        renamed = [w for w in _renamed(present) if not w.by_loader]
        if share(renamed, present) >= SAME_PART:
            yield _only_names(checkpoint, present, renamed)


def _renamed(weights: Sequence[Weight]) -> list[Weight]:
    return [w for w in weights if w.renamed is not None]


def _strangers(checkpoint: Checkpoint, present: Sequence[Weight]) -> bool:
    """Whether the checkpoint and the model have at most single names (a head's) in common."""
    few = len(present) <= CHANCE * min(checkpoint.tensors, len(checkpoint.weights))
    return few and not any(w.loaded for w in present)


def _nothing(checkpoint: Checkpoint, matched: int) -> Finding:
    which = f"only {matched}" if matched else "not one"
    return Finding(
        f"{which} of the checkpoint's {counted(checkpoint.tensors, 'tensor')} has a name of this model",
        Severity.ERROR,
        at=tuple(list(checkpoint.unplaced)[:4]),
        measured={"tensors": checkpoint.tensors, "matched": matched, "parameters": len(checkpoint.weights)},
        threshold={"matched": len(checkpoint.weights)},
        cause=f"{checkpoint.shown} belongs to another architecture, or its names were changed: no prefix "
        "that could be removed or added makes them match",
        fix=Fix(
            "compare the two lists of names",
            ("print(list(state_dict)[:5])", "print([name for name, _ in model.named_parameters()][:5])"),
        ),
    )


def _no_adapters(checkpoint: Checkpoint) -> Finding:
    return Finding(
        "the checkpoint holds only adapters, and the model has none",
        Severity.WARNING,
        at=tuple(list(checkpoint.unplaced)[:4]),
        measured={"tensors": checkpoint.tensors, "matched": 0},
        threshold={"matched": checkpoint.tensors},
        cause="nothing of the checkpoint can have been loaded into this model; assumed, not known: that the "
        "adapters were not merged into it",
        fix=Fix("add the adapters", ("model = PeftModel.from_pretrained(base, folder)",)),
    )


def _not_loaded(
    checkpoint: Checkpoint, roles: Sequence[str], wrong: Sequence[Weight], weights: Sequence[Weight]
) -> Finding:
    everything = all(w.role in roles for w in weights if w.key is not None)
    what = "the model" if everything else listed(called(role) for role in roles)
    many = not everything and len(roles) > 1
    renamed = _renamed(wrong)
    rest_loaded = any(w.by_loader and w.agreement is not None and w.loaded for w in weights)
    if rest_loaded and all(w.by_loader for w in renamed):
        renamed = []  # the rest was loaded, so the names were known
    if renamed and len(renamed) * 2 >= len(wrong):
        cause, fix = _prefix(renamed)
    elif all(w.adapter for w in wrong):
        cause = "the adapters have the names of the checkpoint's and not their values: they are new ones"
        fix = Fix("load them", ("model = PeftModel.from_pretrained(base, folder, is_trainable=True)",))
    else:
        cause = Inferred(
            "the rest was loaded, and the names agree: these were initialised again or replaced afterwards, "
            "or skipped on purpose; which was not established"
            if any(w.loaded and w.agreement is not None for w in weights)
            else "the names agree and the values are unrelated: the checkpoint was never loaded into this "
            "object, or its weights were initialised again afterwards; which was not established"
        )
        fix = Fix(
            "load after the model is complete, and look at what was loaded",
            ("print(model.load_state_dict(state_dict, strict=False))",),
        )
    # Constants, such as new norms, are the same in any model.
    compared = [w for w in weights if w.distance is not None or (w.key is None and not w.adapter)]
    return Finding(
        f"{what} {'do' if many else 'does'} not have the checkpoint's weights",
        Severity.ERROR,
        at=places([w.name for w in wrong], [w.name for w in compared]),
        measured={
            "checkpoint": checkpoint.shown,
            "unrelated_tensors": len(wrong),
            "loaded_tensors": sum(bool(w.loaded) for w in compared),
            "largest_agreement": max(w.agreement or 0.0 for w in wrong),
            "all_tensors": checkpoint.counts(),
        },
        threshold={"agreement": 0.5},
        cause=cause,
        fix=fix,
    )


def _prefix(renamed: Sequence[Weight]) -> tuple[str, Fix]:
    pairs = Counter(w.renamed for w in renamed if w.renamed is not None)
    shown = [
        f"'{theirs}' where the model has '{ours}' ({counted(count, 'tensor')})"
        for (theirs, ours), count in pairs.most_common(3)
    ]
    cause = f"the names differ, and strict=False ignores that: the checkpoint has {listed(shown)}"
    if all(w.by_loader for w in renamed):
        cause += "; from_pretrained would rename them, load_state_dict does not"
        return cause, Fix(
            "load the checkpoint with from_pretrained", ("model = type(model).from_pretrained(folder)",)
        )
    (theirs, ours), _ = pairs.most_common(1)[0]
    if len(pairs) > 1:
        line = "state_dict = {new_name(name): t for name, t in state_dict.items()}"
    elif theirs and not ours:
        line = f'state_dict = {{name.removeprefix("{theirs}"): t for name, t in state_dict.items()}}'
    elif not theirs:
        line = f'state_dict = {{"{ours}" + name: t for name, t in state_dict.items()}}'
    else:
        line = f'state_dict = {{name.replace("{theirs}", "{ours}", 1): t for name, t in state_dict.items()}}'
    return cause, Fix(
        "rename, then load with strict=True", (line, "model.load_state_dict(state_dict, strict=True)")
    )


def _single(checkpoint: Checkpoint, single: Sequence[Weight], present: Sequence[Weight]) -> Finding:
    return Finding(
        f"{counted(len(single), 'tensor')} of {len(present)} "
        f"{'has' if len(single) == 1 else 'have'} other values than in the checkpoint",
        Severity.WARNING,
        at=places([w.name for w in single], [w.name for w in present]),
        measured={
            "unrelated_tensors": len(single),
            "largest_agreement": max(w.agreement or 0 for w in single),
            "all_tensors": checkpoint.counts(),
        },
        threshold={"agreement": 0.5},
        cause="the rest was loaded; assumed, not known: that these should not be new",
        fix=Fix("load the checkpoint after everything that initialises weights"),
    )


def _only_names(checkpoint: Checkpoint, present: Sequence[Weight], renamed: Sequence[Weight]) -> Finding:
    cause, fix = _prefix(renamed)
    return Finding(
        "the checkpoint's names do not match this model",
        Severity.WARNING,
        at=places([w.name for w in present], [w.name for w in checkpoint.weights]),
        measured={"tensors": checkpoint.tensors, "matched": len(present) - len(renamed)},
        threshold={"matched": len(present)},
        cause=f"{cause}; values could not be compared, and nothing is assumed to rename them on loading",
        fix=fix,
    )


@checkpoint_not_loaded.bad
def random_language_model() -> Checkpoint:
    """Everything of the language model is in the checkpoint under another beginning, and was passed over."""
    return sample_checkpoint(
        lambda w: (
            NOT_LOADED | {"key": w.name.replace("model.lm.", "llm."), "renamed": ("llm.", "model.lm.")}
            if w.role == "language"
            else {}
        )
    )


@checkpoint_not_loaded.bad
def never_loaded() -> Checkpoint:
    return sample_checkpoint(lambda w: NOT_LOADED)


@checkpoint_not_loaded.bad
def another_architecture() -> Checkpoint:
    absent = {"key": None, "equal": None, "agreement": None, "distance": None}
    return dataclasses.replace(
        sample_checkpoint(lambda w: absent, unplaced={"encoder.block.0.weight": (64, 64)}), tensors=1
    )


@checkpoint_not_loaded.good
def trained_since() -> Checkpoint:
    return sample_checkpoint(lambda w: {"equal": False, "agreement": 0.97, "distance": 0.2})


@checkpoint_not_loaded.good
def renamed_while_loading() -> Checkpoint:
    return sample_checkpoint(lambda w: {"key": f"module.{w.name}", "renamed": ("module.", "")})
