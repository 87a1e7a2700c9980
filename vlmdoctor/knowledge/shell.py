"""Telling a line of Python from a command of the shell."""

from __future__ import annotations

import re

_SHELL = re.compile(
    r"\s*(?:[-#]|[A-Z][A-Z0-9_]*=\S* |"
    r"(?:accelerate|apt|cat|conda|dmesg|docker|echo|env|export|git|hf|kill|ls|lsof|minivlm|modprobe"
    r"|mount|nvcc|nvidia-smi|pip|python3?|rm|sbatch|source|srun|sudo|systemctl|torchrun|ulimit|unset|uv"
    r"|vlmdoctor)(?:\s|$))"
)


def is_code(line: str) -> bool:
    """Whether a line of a fix is Python, and not a command of the shell."""
    return bool(line.strip()) and _SHELL.match(line) is None
