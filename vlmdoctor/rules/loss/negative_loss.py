"""negative-loss: a loss over token labels is below zero."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.forward import Forward
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("negative-loss", "LOSS130", explains=("loss-not-falling", "initial-loss"))
def negative_loss(forward: Forward) -> Iterator[Finding]:
    """Loss is negative on a batch with token labels.

    ## Why it matters
    Cross-entropy is a sum of negative logarithms of probabilities, and never below zero. A minus sign too
    many reverses the descent: every step makes the right tokens less likely, while the printed loss keeps
    falling and looks like progress.

    ## Confidence and false positives
    The loss was measured. A loss that adds other terms to the cross-entropy (a reward, an entropy bonus, the
    logarithm of a density) may be negative by design, so that it is a warning.

    ## What to do
    Look for the sign: `cross_entropy` has its minus inside, `log_softmax(...).gather(...)` needs one.
    """
    if forward.loss is None or not forward.finite or not forward.supervised_tokens or forward.loss >= 0:
        return
    yield Finding(
        f"the loss is negative: {forward.loss:.4f}, and a cross-entropy over tokens can't be below zero",
        Severity.WARNING,
        at=("the loss",),
        measured={"loss": forward.loss, "labels": forward.supervised_tokens},
        threshold={"loss": 0.0},
        cause="its sign is wrong, or added terms outweigh the cross-entropy; which was not established",
        certainty=Certainty.INFERRED,
        fix=Fix("flip the sign", ("loss = torch.nn.functional.cross_entropy(logits, labels)",)),
    )


@negative_loss.bad
def log_likelihood() -> Forward:
    return Forward(loss=-6.5, finite=True, logits_shape=(2, 8, 680), vocab_size=680, supervised_tokens=10)


@negative_loss.good
def cross_entropy() -> Forward:
    return Forward(loss=6.5, finite=True, logits_shape=(2, 8, 680), vocab_size=680, supervised_tokens=10)
