"""A training step without weights: what fits together, what gets a gradient, what it will cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmdoctor.evidence.failure import Failure

DEPTH = "shapes"
PROBE = "vlmdoctor.probes.dry_run.shapes"
FOR_DRY_RUNS = "only for dry runs"


@dataclass(frozen=True, kw_only=True)
class ModuleShape:
    """One module, or several alike that were folded into one row.

    Attributes:
        name: Canonical name; a number that differs between folded modules is `*`.
        kind: Its class.
        count: How many modules the row stands for.
        parameters, trainable: Numbers in them altogether.
        shape_in, shape_out: The first tensor in and out at the first call; None where it did not run.
        kept: Bytes that stayed alive when it returned: its output and what backward needs.
        flops: Floating-point operations of its forward pass, its parts included.
        gradient: Whether every trainable tensor got a gradient; None without trainable ones.
    """

    name: str
    kind: str
    count: int
    parameters: int
    trainable: int
    shape_in: tuple[int, ...] | None
    shape_out: tuple[int, ...] | None
    kept: int
    flops: int
    gradient: bool | None


@dataclass(frozen=True, kw_only=True)
class Clash:
    """A number where shapes met that did not fit, and where the configuration says it.

    Attributes:
        what: The tensor, or an empty text where only the number is known.
        number: The size, or the list of sizes.
        said_by: Paths in the configuration with that value, such as `vision_config.hidden_size`.
    """

    what: str
    number: Any
    said_by: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """What one step without weights gave.

    Attributes:
        failure: What forward or backward raised; `phase` says which.
        phase: `forward` or `backward`: how far it came.
        clashes: The sizes that met where it was raised.
        loss: Whether the model gave a loss that leads back to parameters.
        without_gradient: Canonical names of trainable parameters that got none.
        modules: The table of modules, repeated ones folded.
        parameter_bytes, buffer_bytes, gradient_bytes: In the dtype of the dry run.
        trainable, parameters: Numbers, not tensors.
        saved_bytes: Alive between forward and backward.
        peak_bytes: The most alive at once in a pass, gradients included, parameters not.
        peak_at: (phase, module, operator) of that moment.
        peak_parts: Those bytes by purpose: gradients, activations, temporary.
        flops_forward, flops_backward: Floating-point operations of the batch.
        batch_size, tokens: Samples, and tokens in each; None where the batch does not tell.
        image_tokens: Placeholders of images in the first sample; None where unknown.
        images: Images in the batch; None where unknown.
        context: The longest sequence that the configuration allows; None where it does not say.
        dtype: Of the weights in the dry run.
        seconds: How long the step took.
        batch_made: Whether the batch was made from the configuration, and is not the user's own.
        spread: Whether tokens had to be assumed to choose experts evenly.
    """

    failure: Failure | None = None
    phase: str = "forward"
    clashes: tuple[Clash, ...] = ()
    loss: bool = True
    without_gradient: tuple[str, ...] = ()
    modules: tuple[ModuleShape, ...] = ()
    parameter_bytes: int = 0
    buffer_bytes: int = 0
    gradient_bytes: int = 0
    trainable: int = 0
    parameters: int = 0
    saved_bytes: int = 0
    peak_bytes: int = 0
    peak_at: tuple[str, str, str] = ("", "", "")
    peak_parts: Mapping[str, int] = field(default_factory=dict)
    flops_forward: int = 0
    flops_backward: int = 0
    batch_size: int | None = None
    tokens: int | None = None
    image_tokens: int | None = None
    images: int | None = None
    context: int | None = None
    dtype: str = ""
    seconds: float = 0.0
    batch_made: bool = False
    spread: bool = False
