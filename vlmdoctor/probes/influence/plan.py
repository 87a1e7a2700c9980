"""Which changes are tried on a batch, in which order, and for how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence import attempts, attempts_cache, attempts_images, attempts_model, attempts_text
from vlmdoctor.evidence.influence import Change, Influence
from vlmdoctor.evidence.reference import Reference
from vlmdoctor.plain_text import raised
from vlmdoctor.subject import Subject

SECONDS = 60.0  # no further change is tried after so long: a large model on a CPU

PLAN: dict[tuple[str, ...], Callable[[Reference], Iterator[tuple[str, Change | str]]]] = {
    ("later-token", "another-sample"): attempts.edit_a_token,
    ("images", "image-of-another"): attempts_images.exchange_an_image,
    ("text",): attempts_text.exchange_the_words,
    ("packed-neighbour",): attempts.edit_a_packed_sample,
    ("padding",): attempts.pad_more,
    ("hidden-tokens",): attempts_text.exchange_the_padding,
    ("positions",): attempts_model.shift_positions,
    ("backend",): attempts_model.switch_backend,
    ("cache",): attempts_cache.decode_with_the_cache,
}


def measure(subject: Subject) -> Influence:
    """Tries every change, the most telling first; use inside `unchanged`."""
    started = time.perf_counter()
    reference = Reference(subject)
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
    return Influence(tried, untried, reference.scale, reference.rounding)
