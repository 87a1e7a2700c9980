"""The model, its configuration and its settings as they are, without running it."""
