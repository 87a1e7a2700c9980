"""The optimizer's groups and state, and the schedule of its learning rate."""
