"""Running statistics of every parameter, in bounded memory however long the run is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlmdoctor.evidence.steps import Track

KEPT = 101  # values kept for a median: an error of a few percentiles at worst


class Tracks:
    """One row of counters for each parameter and a reservoir of samples for the medians.

    All arguments and fields are arrays over the parameters, in one order, so that a sample costs a
    handful of numpy calls and not a Python loop over parameters.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names: list[str] = []
        self.sampled = 0
        # A generator of its own: the run's random numbers are none of our business.
        self._random = np.random.default_rng(0)
        self._counts = np.zeros((0, 6), dtype=np.int64)
        self._first_nonfinite = np.zeros(0, dtype=np.int64)
        self._kept = np.zeros((3, 0, KEPT), dtype=np.float32)
        self.rename(names)

    def rename(self, names: Sequence[str]) -> None:
        """Follows a changed list of parameters; those still there keep their history."""
        known = {name: place for place, name in enumerate(self.names)}
        old = [known.get(name, -1) for name in names]
        came = np.array([place < 0 for place in old], dtype=bool)
        take = np.array([max(place, 0) for place in old], dtype=np.intp)
        if not self.names:
            self._counts = np.zeros((len(names), 6), dtype=np.int64)
            self._first_nonfinite = np.full(len(names), -1, dtype=np.int64)
            self._kept = np.full((3, len(names), KEPT), np.nan, dtype=np.float32)
        else:
            self._counts = self._counts[take]
            self._first_nonfinite = self._first_nonfinite[take]
            self._kept = self._kept[:, take]
            self._counts[came] = 0
            self._first_nonfinite[came] = -1
            self._kept[:, came] = np.nan
        self.names = list(names)

    def add(
        self,
        step: int,
        trainable: np.ndarray,
        grad_norms: np.ndarray,
        update_ratios: np.ndarray,
        changed: np.ndarray,
        has_gradient: np.ndarray,
    ) -> None:
        """One sampled step.

        Args:
            step: Which.
            trainable: [N] bool, whether it had requires_grad.
            grad_norms: [N], before clipping; anything where there was no gradient.
            update_ratios: [N], NaN where not measured.
            changed: [N], share of the measured elements that changed, NaN where not measured.
            has_gradient: [N] bool.
        """
        has_gradient = has_gradient & trainable
        finite = np.isfinite(grad_norms)
        spoiled = has_gradient & ~finite
        zero = has_gradient & (grad_norms == 0)
        moved = trainable & (changed > 0)
        still = has_gradient & finite & ~zero & (changed == 0)
        self._counts += np.stack([trainable, has_gradient, zero, spoiled, moved, still], axis=1)
        self._first_nonfinite[spoiled & (self._first_nonfinite < 0)] = step

        place = self.sampled if self.sampled < KEPT else int(self._random.integers(self.sampled + 1))
        self.sampled += 1
        if place < KEPT:
            self._kept[0, :, place] = np.where(has_gradient & finite, grad_norms, np.nan)
            self._kept[1, :, place] = np.where(trainable & np.isfinite(update_ratios), update_ratios, np.nan)
            self._kept[2, :, place] = np.where(trainable, changed, np.nan)

    def tracks(self) -> tuple[Track, ...]:
        """The statistics as evidence."""
        filled = self._kept[:, :, : max(1, min(self.sampled, KEPT))]
        # A parameter without a single value has no median; numpy warns of it, and to silence that is not
        # safe where several threads train.
        some = ~np.isnan(filled).all(axis=2)
        medians = np.full(some.shape, np.nan, dtype=np.float32)
        medians[some] = np.nanmedian(filled[some], axis=1) if some.any() else np.nan
        found = []
        for place, name in enumerate(self.names):
            samples, with_gradient, zero, spoiled, moved, still = self._counts[place].tolist()
            norm, ratio, changed = (None if value != value else value for value in medians[:, place].tolist())
            first = int(self._first_nonfinite[place])
            found.append(
                Track(
                    name=name,
                    samples=samples,
                    with_gradient=with_gradient,
                    zero_gradient=zero,
                    nonfinite_gradient=spoiled,
                    first_nonfinite=first if first >= 0 else None,
                    grad_norm=norm,
                    update_ratio=ratio,
                    moved=moved,
                    still=still,
                    changed_fraction=changed,
                )
            )
        return tuple(found)
