"""Training batches made from a configuration alone: what a processor would make, without its files."""

from vlmdoctor.targets.synthetic.batch import batch_for
from vlmdoctor.targets.synthetic.consistent import consistent

__all__ = ["batch_for", "consistent"]
