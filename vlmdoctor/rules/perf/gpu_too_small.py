"""gpu-too-small: a training step needs more memory than the GPU has."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.fit import Fit
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("gpu-too-small", "PERF401")
def gpu_too_small(fit: Fit) -> Iterator[Finding]:
    """GPU memory too small for a training step (`--gpu`).

    ## Why it matters
    It ends in `CUDA out of memory`, after the weights were downloaded and the GPU was rented.

    ## Confidence and false positives
    Weights, gradients and activations are those of this model in a dry run of one step on the given batch:
    every tensor that is alive is counted, with the attention kernel that CUDA would choose. The optimizer's
    state is computed from the trainable parameters. One GiB is reserved for CUDA. Not counted are
    fragmentation and the workspaces of kernels, so a step that barely fits here may still fail on the GPU.

    ## What to do
    Recompute activations (`--gradient-checkpointing`), keep the optimizer's state in 8 bits, train adapters
    (`--lora`), take fewer samples, or a larger GPU. The finding names the first of these that fits.
    """
    if fit.needed <= fit.memory:
        return
    parts = {name: _gigabytes(size) for name, size in fit.parts.items()}
    fix = f"{fit.would_fit} would fit" if fit.would_fit else "no cheaper setting tried here fits either"
    yield Finding(
        message=f"a training step needs {_gigabytes(fit.needed)}, {fit.gpu} has {_gigabytes(fit.memory)}",
        severity=Severity.ERROR,
        measured={"needed": _gigabytes(fit.needed), **parts},
        threshold={"memory": _gigabytes(fit.memory)},
        cause=f"the peak is in the {fit.needed_in}",
        fix=Fix(fix),
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


@gpu_too_small.bad
def seven_billion_on_40() -> Fit:
    return Fit(
        gpu="a100-40",
        memory=41_875_931_136,
        needed=70_629_032_712,
        needed_in="optimizer step",
        would_fit="--lora 16",
    )


@gpu_too_small.good
def adapters_on_40() -> Fit:
    return Fit(gpu="a100-40", memory=41_875_931_136, needed=22_000_000_000, needed_in="backward")
