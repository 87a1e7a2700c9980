"""Rules on settings in scripts and notebooks."""
