"""label-leak: a prediction depends on the very label that it is compared with."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.label_leak import LabelLeak
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule

MOVED = 1e-3  # of the largest score: rounding is a thousand times smaller


@rule("label-leak", "MASK180", formerly=("label-seen",), explains=("initial-loss",))
def label_leak(leak: LabelLeak) -> Iterator[Finding]:
    """Label leak: a prediction depends on its own label.

    ## Why it matters
    A decoder that gets the labels as input has to get them shifted by one position: at each position it sees
    what comes before the label to predict. Without that shift the decoder learns to copy: the loss falls
    towards 0 within minutes, and generated text is nonsense ([transformers
    32344](https://github.com/huggingface/transformers/issues/32344)). Labels that are used as a feature do
    the same, and so does a mask that lets a token attend to the next one.

    ## Confidence and false positives
    One label is changed, and the scores that the loss compares with it change. A prediction may depend on
    other labels, which a decoder reads, and never on its own. Three labels are tried, and all have to show
    it.

    ## What to do
    Feed the decoder its start token and then the labels without the last one.
    """
    if leak.tried and leak.moved > MOVED * max(leak.scale, 1e-6):
        yield Finding(
            f"predictions depend on their own labels: changing one changes its scores by {leak.moved:.3g}",
            Severity.ERROR,
            at=("labels", f"row {leak.row}, label {leak.position}"),
            measured={"moved": leak.moved, "largest_score": leak.scale, "labels_tried": leak.tried},
            threshold={"moved": MOVED * leak.scale},
            cause="the decoder reads each label at the position where it predicts that label: the labels "
            "are not shifted (inferred from which scores changed)",
            certainty=Certainty.INFERRED,
            fix=Fix(
                "shift the decoder's input by one",
                ("decoder_input_ids = torch.cat([start, labels[:, :-1]], dim=1)",),
            ),
        )


@label_leak.bad
def fed_without_a_shift() -> LabelLeak:
    return LabelLeak(tried=3, moved=0.8, scale=2.1, row=2, position=4)


@label_leak.good
def only_what_comes_before() -> LabelLeak:
    return LabelLeak(tried=3, moved=0.0, scale=2.1, row=2, position=4)
