"""What labels mean beside token ids."""

IGNORE_INDEX = -100  # a label that no loss counts: the default of torch's cross-entropy
