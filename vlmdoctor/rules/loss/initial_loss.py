"""initial-loss: the first loss is far from that of an untrained model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from vlmdoctor.evidence.parameters import Parameters
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import VOCABULARY, sample_parameters, sample_steps

ABOVE, ABOVE_FLOOR = 1.1, 1.0  # untrained: random logits of standard deviation 1 cost 0.5
TRAINED_ABOVE, TRAINED_FLOOR = 1.5, 1.0
BELOW, BELOW_FLOOR = 0.9, 0.25
MOST_MICRO_BATCHES = 16


@rule("initial-loss", "LOSS102")
def initial_loss(steps: Steps, parameters: Parameters) -> Iterator[Finding]:
    """Initial loss far from ln(vocabulary), the loss of guessing.

    ## Why it matters
    An untrained model gives every token the same probability, so its first loss is ln(vocabulary size). Far
    above that, the initial weights are too large, or the loss is a sum instead of a mean. Clearly below that,
    the model is not untrained, the labels are visible to it, or fewer tokens compete than the head has rows:
    a first loss of 6.5223 is ln 680, the loss of a vocabulary of 680. With trained weights a first loss far
    above ln(vocabulary) means that the weights were not loaded correctly ([MiniMind-V
    75](https://github.com/jingyaogong/minimind-v/issues/75)).

    ## Confidence and false positives
    The numbers are measured, their meaning is not, so it is a warning at most. For a fresh model it is
    reported from 10% and 1.0 above ln(vocabulary), and from 10% below; for trained weights, or where that is
    not known, from 1.5 times ln(vocabulary) plus 1. Nothing is reported where the loss of step 0 or the
    number of labels is not known, and where the loss is a simple fraction of ln(vocabulary), as after a
    division by accumulation steps.

    ## What to do
    Above: start with smaller weights (std 0.02), and average the loss over tokens. Below: count the
    distinct labels, check that the labels are shifted by one, and that the attention is causal."""
    if not steps.steps or steps.steps[0].step != 0 or not parameters.vocab_size:
        return
    start = steps.steps[0]
    loss, rows = start.loss, parameters.vocab_size
    if loss is None or not math.isfinite(loss) or not start.supervised_tokens or rows < 2:
        return
    chance = math.log(rows)
    fresh = steps.resumed is False
    high = max(ABOVE * chance, chance + ABOVE_FLOOR) if fresh else TRAINED_ABOVE * chance + TRAINED_FLOOR
    low = min(BELOW * chance, chance - BELOW_FLOOR)
    uniform = math.exp(min(loss, 700.0))
    measured = {"loss": loss, "as_uniform_over": round(uniform, 1) if uniform < 1e9 else uniform}
    common = f"ln({rows}) is {chance:.4f}"
    if loss > high:
        yield Finding(
            f"the first loss is {loss:.4f}, worse than guessing: {common}",
            Severity.WARNING,
            measured=measured,
            threshold={"loss": high},
            cause=(
                "the untrained model is confident in wrong answers: its initial weights are too large, or "
                "the loss is no mean over tokens (a sum, or not divided by accumulation steps); which of "
                "these was not "
                "established"
                if fresh
                else "trained weights that were not loaded correctly, or a loss that is no mean over tokens; "
                "which of these was not established"
            ),
            certainty=Certainty.INFERRED,
            fix=Fix(
                "start with smaller weights" if fresh else "check which weights were really loaded",
                tuple(
                    f'torch.nn.init.normal_(model.get_parameter("{p.name}"), std=0.02)'
                    for p in parameters.role("head")
                    if len(p.shape) > 1
                )
                if fresh
                else ("print(model.load_state_dict(state, strict=False))",),
            ),
            step=0,
        )
    elif fresh and loss < low and not _fraction(chance, loss):
        yield Finding(
            f"the first loss is {loss:.4f}, that of a uniform guess among {uniform:,.0f} tokens; {common}",
            Severity.WARNING,
            measured=measured,
            threshold={"loss": low},
            cause=(
                "an untrained model can't have such a low loss: fewer tokens compete than the head has "
                "rows, the weights are not untrained, or the labels are visible; which of these was not "
                "established"
            ),
            certainty=Certainty.INFERRED,
            fix=Fix(
                "check the vocabulary, that labels are the next tokens, and that attention is causal",
                ("print(len(tokenizer), model.get_output_embeddings().weight.shape)",),
            ),
            step=0,
        )


def _fraction(chance: float, loss: float) -> bool:
    """Whether `loss` may be the guessing loss divided by a number of micro-batches."""
    ratio = chance / loss if loss > 0 else 0.0
    return 1.5 < ratio < MOST_MICRO_BATCHES + 0.5 and abs(ratio - round(ratio)) < 0.02 * ratio


def _starting_at(loss: float, **fields: object) -> Steps:
    run = sample_steps(120, **fields)  # type: ignore[arg-type]
    return dataclasses.replace(run, steps=(dataclasses.replace(run.steps[0], loss=loss), *run.steps[1:]))


@initial_loss.bad
def too_sure() -> tuple[Steps, Parameters]:
    """Embeddings drawn with standard deviation 1, tied to the head."""
    return _starting_at(143.0), sample_parameters()


@initial_loss.bad
def knows_too_much() -> tuple[Steps, Parameters]:
    """A head with 6,400 rows whose first loss is ln 680."""
    return _starting_at(6.5223), dataclasses.replace(sample_parameters(), vocab_size=6400)


@initial_loss.good
def guesses() -> tuple[Steps, Parameters]:
    return _starting_at(math.log(VOCABULARY) + 0.3), sample_parameters()


@initial_loss.good
def divided_by_accumulation() -> tuple[Steps, Parameters]:
    return _starting_at(math.log(VOCABULARY) / 4), sample_parameters()


@initial_loss.good
def fine_tuning() -> tuple[Steps, Parameters]:
    return _starting_at(1.2, resumed=True), sample_parameters()
