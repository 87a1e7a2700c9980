"""label-leak: a prediction depends on the very label that it is compared with."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.label_leak import LabelLeak
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule

MOVED = 1e-3  # of the largest score: rounding is a thousand times smaller


@rule("label-leak", "MASK180", formerly=("label-seen",), explains=("initial-loss",))
def label_leak(leak: LabelLeak) -> Iterator[Finding]:
    """The model is given the answer to each prediction together with the question.

    ## Why it matters
    A decoder that is fed the labels has to be fed them one place later: at each place it sees what comes
    before the label that it is to foretell. Without that shift it learns to copy: the loss falls towards 0
    within minutes, and what is generated is nonsense ([transformers
    32344](https://github.com/huggingface/transformers/issues/32344)). The same comes of labels that are used
    as a feature, or of a mask that lets a token see itself one place ahead.

    ## How sure it is
    One label is changed, and the scores that the loss compares with it are read off its call: they move. A
    prediction may depend on other labels, which a decoder reads; on its own it never may. Three labels are
    tried, and all have to show it.

    ## What to do
    Feed the decoder its start token and then the labels without the last one.
    """
    if leak.tried and leak.moved > MOVED * max(leak.scale, 1e-6):
        yield Finding(
            f"predictions depend on their own labels: changing one moves its scores by {leak.moved:.3g}",
            Severity.ERROR,
            at=("labels", f"row {leak.row}, label {leak.position}"),
            measured={"moved": leak.moved, "largest_score": leak.scale, "labels_tried": leak.tried},
            threshold={"moved": MOVED * leak.scale},
            cause="the decoder reads the labels at the places where it is to foretell them: they are not "
            "shifted (inferred from which scores moved)",
            certainty=Certainty.INFERRED,
            fix=Fix(
                "shift what the decoder reads by one",
                ("decoder_input_ids = torch.cat([start, labels[:, :-1]], dim=1)",),
            ),
        )


@label_leak.bad
def fed_without_a_shift() -> LabelLeak:
    return LabelLeak(tried=3, moved=0.8, scale=2.1, row=2, position=4)


@label_leak.good
def only_what_comes_before() -> LabelLeak:
    return LabelLeak(tried=3, moved=0.0, scale=2.1, row=2, position=4)
