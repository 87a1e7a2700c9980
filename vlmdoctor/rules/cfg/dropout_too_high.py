"""dropout-too-high: a dropout drops four fifths of the values or more."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.module_tree import ModuleTree
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import counted

TOO_HIGH = 0.8


@rule("dropout-too-high", "CFG340", explains=("loss-not-falling",))
def dropout_too_high(tree: ModuleTree) -> Iterator[Finding]:
    """Dropout too high: 80% of the values or more are dropped.

    ## Why it matters
    `nn.Dropout(p)` takes the share of dropped values. With TensorFlow's old `keep_prob` in mind one writes
    0.9 and keeps a tenth, ten times as large: the loss is noisy and hardly falls, while evaluation, without
    dropout, looks better than training.

    ## Confidence and false positives
    The shares are read from the modules. Language and vision models use 0 to 0.5. It is a warning, since
    nothing forbids it, and 1.0 is a way to switch a branch off.

    ## What to do
    Give the share to be dropped, such as 0.1; 0 for fine-tuning a large model.
    """
    high = [(name, share) for name, share in tree.needing_dropouts() if TOO_HIGH <= share <= 1.0]
    if not high:
        return
    most = max(share for _, share in high)
    yield Finding(
        f"{counted(len(high), 'dropout')} of {len(tree.dropouts)} drop {most:.0%} of the values"
        if len(high) > 1
        else f"{high[0][0]} drops {most:.0%} of the values",
        Severity.WARNING,
        at=(*(f"{name} (p={share:g})" for name, share in high[:6]),),
        measured={"dropouts": len(high), "p": most},
        threshold={"p": TOO_HIGH},
        cause="nn.Dropout takes the share of dropped values, not of kept ones",
        fix=Fix("give the share of values to drop", ("nn.Dropout(p=0.1)",)),
    )


@dropout_too_high.bad
def keep_and_drop_mixed_up() -> ModuleTree:
    return ModuleTree(dropouts=(("model.layers.0.dropout", 0.9), ("model.layers.1.dropout", 0.9)))


@dropout_too_high.bad
def one_of_them() -> ModuleTree:
    return ModuleTree(dropouts=(("model.layers.0.dropout", 0.1), ("model.connector.drop", 0.9)))


@dropout_too_high.good
def as_usual() -> ModuleTree:
    return ModuleTree(dropouts=(("model.layers.0.dropout", 0.1), ("model.layers.1.dropout", 0.0)))
