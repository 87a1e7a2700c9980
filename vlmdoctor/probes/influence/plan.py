"""Which changes are tried on a batch, in which order, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.plain_text import raised
from vlmdoctor.probes.forward import passed
from vlmdoctor.probes.influence import execution, images, kv_cache, tokens, words
from vlmdoctor.probes.influence.baseline import Baseline
from vlmdoctor.sandbox.processes import communicates
from vlmdoctor.sandbox.restore import restoring
from vlmdoctor.subject import Subject
from vlmdoctor.watching.nonfinite import nonfinite_weights

SECONDS = 60.0  # no further change is tried after so long: a large model on a CPU

PLAN: dict[tuple[str, ...], Callable[[Baseline], Iterator[tuple[str, Change | str]]]] = {
    ("later-token", "another-sample"): tokens.edit_a_token,
    ("images", "image-of-another"): images.exchange_an_image,
    ("text",): words.exchange_the_words,
    ("packed-neighbour",): tokens.edit_a_packed_sample,
    ("padding",): tokens.pad_more,
    ("hidden-tokens",): words.exchange_the_padding,
    ("positions",): execution.shift_positions,
    ("backend",): execution.switch_backend,
    ("cache",): kv_cache.decode_with_the_cache,
}


def probe(subject: Subject, gather: Callable[[type], Any]) -> Influence:
    """Runs the model about ten times on changed copies of the batch, and leaves it as it was."""
    passed(gather, finite=True)
    if communicates(subject.model):
        raise Unavailable("a forward pass needs all processes here")
    if broken := nonfinite_weights(subject.model):
        raise Unavailable(f"{broken[0]} holds NaN or infinity")
    with restoring(subject):
        return measure(subject)


def measure(subject: Subject) -> Influence:
    """Tries every change, the most telling first; use inside `restoring`."""
    started = time.perf_counter()
    reference = Baseline(subject)
    tried: dict[str, Change] = {}
    untried: dict[str, str] = {}
    for names, attempt in PLAN.items():
        took = time.perf_counter() - started
        reason = None
        if took + 2 * reference.trials.seconds > SECONDS:
            reason = (
                f"one forward pass takes {reference.trials.seconds:.0f} s here, and {took:.0f} s were used"
            )
        else:
            try:
                for name, result in attempt(reference):
                    if isinstance(result, Change):
                        tried[name] = result
                    else:
                        untried[name] = result
            except Unavailable as unavailable:
                reason = str(unavailable)
            except Exception as error:
                reason = f"the changed batch raises {raised(error, 120)}"
        if reason is not None:
            untried |= {name: reason for name in names if name not in tried and name not in untried}
    return Influence(changes=tried, untried=untried, scale=reference.scale, rounding=reference.rounding)
