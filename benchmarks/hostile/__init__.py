"""Hostile input for `vlmdoctor`: generated from a seed, run in forked children, judged, counted by class."""
