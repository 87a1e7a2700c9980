"""What the model can answer about images that it has never seen, and what it answers without looking.

An answer counts as right when every token of it is the likeliest one, given the question and the answer's
tokens before it, and so is the stop token after it. That is the same as being word for word what greedy
generation says, in one pass for a whole batch instead of one per token: as long as all tokens were right so
far, both see the same text.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minivlm.data import Collator, Sample
from minivlm.progress import Progress, nothing

WITHOUT_LOOKING = ("shuffled", "blank")


@torch.no_grad()
def evaluate_answers(
    model: nn.Module,
    samples: Sequence[Sample],
    collator: Callable[[str], Collator],
    headline_kinds: Sequence[str],
    batch_size: int = 100,
    autocast: AbstractContextManager | None = None,
    progress: Progress = nothing,
) -> dict[str, Any]:
    """Exact match and loss with the right images, with those of other samples, and with blank ones.

    Args:
        model: In evaluation mode (see `undisturbed`).
        samples: What is asked, with the right answers.
        collator: Makes the collator for "real", "shuffled" or "blank" images.
        progress: Called with how many answers have been looked at, and of how many.
        headline_kinds: The kinds of question that `accuracy` is about; all of them, if none of these occurs.

    Returns:
        How many `questions` were asked; accuracy, accuracy_shuffled, how many `samples` they are about and of
        which kinds (`accuracy_of`), the same with `/<kind>` for each kind; and loss, loss_shuffled,
        loss_blank as means over all answer tokens.
    """
    device = next(model.parameters()).device
    asked = [sample.kind for sample in samples]
    chosen = [kind for kind in headline_kinds if kind in asked] or sorted(set(asked))
    record: dict[str, Any] = {
        "questions": len(samples),
        "samples": sum(kind in chosen for kind in asked),
        "accuracy_of": ", ".join(chosen),
    }
    done, ways = 0, ("real", *WITHOUT_LOOKING)
    for images in ways:
        suffix = "" if images == "real" else f"_{images}"
        right: dict[str, list[bool]] = {}
        loss, tokens = 0.0, 0
        collate = collator(images)
        for chunk in even_chunks(samples, batch_size):
            batch = {name: value.to(device) for name, value in collate(chunk).items()}
            with autocast or torch.no_grad():
                output = model(**batch, num_items_in_batch=1, use_cache=False)
            loss += float(output.loss)
            tokens += int((batch["labels"][:, 1:] != -100).sum())
            for sample, exact in zip(chunk, exact_matches(output.logits, batch["labels"]), strict=True):
                right.setdefault(sample.kind, []).append(exact)
            done += len(chunk)
            progress(done, len(ways) * len(samples))
        record[f"loss{suffix}"] = loss / max(1, tokens)
        if images != "blank":
            record |= _accuracies(right, f"accuracy{suffix}", chosen)
    return record


def exact_matches(logits: Tensor, labels: Tensor) -> list[bool]:
    """Per sample, whether all supervised tokens are the likeliest: logits [B, T, C], labels [B, T]."""
    wanted = labels[:, 1:]
    right = (logits[:, :-1].argmax(-1) == wanted) | (wanted == -100)
    return right.all(1).tolist()


def even_chunks(samples: Sequence[Any], most: int) -> Iterator[Sequence[Any]]:
    """`samples` in pieces of about equal length, so that even the last has others to exchange images with."""
    count = -(-len(samples) // most)
    bounds = [len(samples) * i // max(1, count) for i in range(count + 1)]
    for first, last in itertools.pairwise(bounds):
        yield samples[first:last]


def _accuracies(right: Mapping[str, list[bool]], name: str, chosen: Sequence[str]) -> dict[str, float]:
    headline = [exact for kind in chosen for exact in right[kind]]
    found = {name: sum(headline) / max(1, len(headline))}
    return found | {f"{name}/{kind}": sum(exacts) / len(exacts) for kind, exacts in sorted(right.items())}


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards training goes on as if nothing had happened."""
    modes = {module: module.training for module in model.modules()}
    state = random_state()
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
        set_random_state(state)


def random_state() -> dict[str, Any]:
    """The state of every random number generator that a model or a dataset may draw from, as plain values."""
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, keys.tolist(), position, has_gauss, gauss),  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None,
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Puts the generators back into a state of `random_state`."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
