"""Plots of a recorded run. matplotlib is imported by the modules in here, so import them late."""
