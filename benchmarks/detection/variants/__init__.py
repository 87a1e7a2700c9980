"""Changes that leave a healthy model healthy: how people tune, feed, run and optimize it."""

from benchmarks.detection.variants import batches, losses, optimizing, running, tuning
from benchmarks.detection.variants.registry import VARIANTS

__all__ = ["VARIANTS", "batches", "losses", "optimizing", "running", "tuning"]
