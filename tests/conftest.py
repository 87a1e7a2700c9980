"""What holds for all tests: threads, before torch is imported and takes all cores; and chance."""

import os

from hypothesis import settings

# Several processes share the cores: one thread each.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples each time, and as slow as a busy machine makes them.
settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")
