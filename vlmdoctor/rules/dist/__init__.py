"""Rules about training with several processes."""
