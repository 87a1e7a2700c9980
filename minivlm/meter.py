"""Speed, memory, and how much of the GPU's arithmetic is used."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

# Dense bf16 (T4, V100: fp16) peak in FLOP/s, by what the device's name contains; vendors' data sheets.
PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
    "A10": 125e12, "V100": 125e12, "T4": 65e12, "4090": 165e12, "3090": 71e12,
}  # fmt: skip


class Meter:
    """Measures the training between two log lines; evaluations and checkpoints are left out of the speed."""

    def __init__(self, model: nn.Module, device: torch.device, tokens: int, seconds: float) -> None:
        self.device = device
        self._began = time.perf_counter() - seconds
        self._since = time.perf_counter()
        self._tokens = tokens
        # 2 FLOPs forward and 4 backward for each weight and token; a frozen weight saves 2 of them. Attention
        # itself and the vision encoder's own token count are not told apart: this is the usual estimate.
        self._flops = sum(p.numel() * (6 if p.requires_grad else 4) for p in model.parameters() if p.ndim > 1)
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self._peak = next((peak for part, peak in PEAKS.items() if part in name), None)

    @property
    def seconds(self) -> float:
        """Since the run began, over all resumes."""
        return time.perf_counter() - self._began

    def read(self, tokens: int) -> dict[str, float | None]:
        """tokens_per_s, memory_mb and mfu since the last reading, now that `tokens` were seen in all."""
        now = time.perf_counter()
        speed = (tokens - self._tokens) / max(now - self._since, 1e-9)
        self._since, self._tokens = now, tokens
        mfu = speed * self._flops / self._peak if self._peak else None
        return {"tokens_per_s": speed, "memory_mb": memory_mb(self.device), "mfu": mfu}

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time spent inside out of the speed."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - began


def memory_mb(device: torch.device) -> float | None:
    """Most memory used so far, in MiB: of the GPU, else of this process; None where it can't be told."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10
