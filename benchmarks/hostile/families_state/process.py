"""What belongs to the whole process, changed by a forward pass."""

from __future__ import annotations

import os
import random
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.hostile.families_state.tiny import family, touching
from vlmdoctor.subject import Subject


@family
def process_random_states() -> Subject:
    def touch(model: Any, x: Tensor) -> None:
        random.random()
        np.random.rand()
        torch.manual_seed(5)

    return touching(touch)


@family
def process_settings_of_torch() -> Subject:
    def touch(model: Any, x: Tensor) -> None:
        torch.set_float32_matmul_precision("high")
        torch.use_deterministic_algorithms(True)
        torch.set_default_dtype(torch.float32)
        torch.set_anomaly_enabled(False)

    return touching(touch)


@family
def process_environment() -> Subject:
    def touch(model: Any, x: Tensor) -> None:
        os.environ["VLMDOCTOR_STATE_FAMILY"] = "1"

    return touching(touch)


@family
def process_warnings() -> Subject:
    def touch(model: Any, x: Tensor) -> None:
        warnings.filterwarnings("ignore", message="nothing")
        np.seterr(all="ignore")

    return touching(touch)
