"""Watching a training run from outside: hooks, the run folder, and a few steps on a copy.

`watcher` and `trial` need torch; `schema`, `recorder` and `recorded` do not, so that a finished run
is read and judged without it.
"""
