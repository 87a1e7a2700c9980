"""Several processes share the cores: one thread each, before torch is imported and takes them all."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
