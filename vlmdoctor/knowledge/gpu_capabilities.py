"""Compute capabilities of well-known GPUs, for reports that name the model only."""

from __future__ import annotations

import re

# Checked in this order; from NVIDIA's own table of CUDA GPUs.
_MODELS = (
    (r"GB10\b", (12, 1)),
    (r"GB300|B300", (10, 3)),
    (r"GB200|\bB200|\bB100", (10, 0)),
    (r"RTX 50[5-9]0|RTX PRO \d+ Blackwell|RTX PRO (?:6000|5000|4500|4000)\b", (12, 0)),
    (r"GH200|\bH100|\bH200|\bH800|\bH20\b", (9, 0)),
    (r"RTX 40[5-9]0|\bL40S?\b|\bL4\b|\bL20\b|RTX \d000 Ada|RTX 4000 SFF Ada", (8, 9)),
    (r"\bOrin\b", (8, 7)),
    (r"RTX 30[5-9]0|RTX A\d{4}|\bA10G?\b|\bA16\b|\bA2\b|\bA40\b", (8, 6)),
    (r"\bA100|\bA800|\bA30\b", (8, 0)),
    (r"\bT4G?\b|RTX 20[6-8]0|Quadro RTX|TITAN RTX|GTX 16[5-6]0|\bT1000\b|\bT600\b", (7, 5)),
    (r"Tesla V100|\bV100|TITAN V\b", (7, 0)),
    (r"Tesla P100|\bP100", (6, 0)),
    (r"GTX 10[5-8]0|TITAN Xp?\b|Tesla P40|\bP40\b|Tesla P4\b|Quadro P\d+", (6, 1)),
    (r"Tesla M40|Tesla M60|GTX 9[5-8]0|GTX TITAN X", (5, 2)),
    (r"Tesla K80|\bK80\b", (3, 7)),
)


def capability_of(name: str) -> tuple[int, int] | None:
    """The compute capability of a model; None for one that is not known here.

    >>> capability_of("NVIDIA H100 80GB HBM3"), capability_of("Tesla K80"), capability_of("RTX 9999")
    ((9, 0), (3, 7), None)
    """
    return next((found for pattern, found in _MODELS if re.search(pattern, name, re.IGNORECASE)), None)
