"""Training batches made from a configuration alone: what a processor would make, without its files."""

from vlmdoctor.targets.synthetic.batch import batch_for
from vlmdoctor.targets.synthetic.consistent import consistent
from vlmdoctor.targets.synthetic.defaults import default_config

__all__ = ["batch_for", "consistent", "default_config"]
