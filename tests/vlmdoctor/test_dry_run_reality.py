"""A dry step says of tiny models what a real step does: shapes, dtypes, gradient reach, and bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.detection.models import make
from vlmdoctor.dryrun.abstract import Abstract
from vlmdoctor.dryrun.attention import kernel_of
from vlmdoctor.dryrun.ledger import Ledger
from vlmdoctor.dryrun.meta_copy import meta_copy
from vlmdoctor.dryrun.step import dry_step
from vlmdoctor.dryrun.unknown import ValueUnknown
from vlmdoctor.errors import Unavailable
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.probes.dry_run.shapes import shapes_of
from vlmdoctor.sandbox.call import run
from vlmdoctor.sandbox.restore import copy_of

# One or two of every mechanism: features in placeholders, cross-attention, Q-Formers, patches in packed rows,
# tiles, two towers, mixtures of experts, encoders with decoders; text decoders of all kinds.
FAMILIES = (
    *("llava", "llava_next", "llava_onevision", "vipllava", "aya_vision", "internvl", "got_ocr2", "ovis2"),
    *("paligemma", "gemma3", "idefics2", "idefics3", "smolvlm", "janus", "deepseek_vl", "fuyu"),
    "deepseek_vl_hybrid",
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "paddleocr_vl", "video_llama_3", "llama4"),
    *("blip", "kosmos-2", "pix2struct", "lfm2_vl", "qianfan_ocr", "vision-encoder-decoder"),
    *("llama", "gemma2", "phi", "gpt2", "gpt_neox", "mixtral", "qwen3", "opt", "bloom"),
)
Shape = tuple[tuple[int, ...], torch.dtype]


class Observing(TorchDispatchMode):
    """The same ledger over real operators: what is alive at once on a CPU."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.ledger.observe(func, args, kwargs or {}, out)
        return out


def forward(model: Any, batch: Any) -> tuple[dict[str, Shape], int]:
    """What each module gave first, and the bytes of floats that autograd keeps for backward."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Any] = {}
    shapes: dict[str, Shape] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own and tensor.is_floating_point():
            kept[storage._cdata] = storage
        return tensor

    def remember(name: str) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            if isinstance(out, torch.Tensor):
                shapes.setdefault(name, (tuple(out.shape), out.dtype))

        return hook

    hooks = [m.register_forward_hook(remember(canonical_name(n))) for n, m in model.named_modules()]
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run(model, copy_of(batch), None)
    for hook in hooks:
        hook.remove()
    total = sum(storage.nbytes() for storage in kept.values())
    del output
    return shapes, total


@pytest.fixture(scope="module", params=FAMILIES)
def steps(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A family's model with what a real step gave, once for all tests."""
    made = make(request.param)
    model, batch = made.model, made.batch
    twin = meta_copy(model)
    shapes, saved = forward(model, batch)
    ledger = Ledger()
    ledger.already([*model.parameters(), *model.buffers()])
    with Observing(ledger):
        loss, logits = run(model, copy_of(batch), None)
        del logits
        loss.backward()
    yield model, batch, twin, shapes, saved, ledger


def test_a_dry_step_equals_a_real_one(steps: Any) -> None:
    model, batch, twin, shapes, saved, ledger = steps
    with Abstract(functions=kernel_of("cpu")):
        dry_shapes, dry_saved = forward(twin, batch)
    assert dry_shapes == shapes
    assert dry_saved == saved

    step = dry_step(twin, batch, device="cpu")
    assert step.error is None
    assert step.reached == {canonical_name(n) for n, p in model.named_parameters() if p.grad is not None}
    assert step.flops_forward + step.flops_backward == sum(ledger.flops.values())
    assert step.peak == pytest.approx(ledger.peak, rel=0.1)


class Choosing(torch.nn.Module):
    """Goes on with some rows, chosen in one of several ways by their values."""

    def __init__(self, choose: Any) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(4, 4)
        self.choose = choose

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.choose(self.proj(x)).sum()


@pytest.mark.parametrize(
    ("operator", "choose"),
    [
        ("aten.nonzero", lambda x: x[(x > 0).nonzero()[:, 0]]),
        ("aten.index", lambda x: x[x > 0]),
        ("aten.masked_select", lambda x: torch.masked_select(x, x > 0)),
        ("aten._local_scalar_dense", lambda x: x * float(x.max())),
        ("Tensor.item", lambda x: x * max(x.max().item(), 1.0)),
        ("aten._unique2", lambda x: x.argmax(-1).unique().float().sum() * x),
        ("aten.bincount", lambda x: x * torch.bincount(x.argmax(-1)).numel()),
        ("Tensor.tolist", lambda x: x * x.argmax(-1).tolist()[0]),
        ("Tensor.numpy", lambda x: x * float(x.detach().numpy().mean())),
        ("aten.repeat_interleave", lambda x: x.repeat_interleave(x.argmax(-1), 0)),
    ],
)
def test_an_operator_that_needs_a_value_is_named(operator: str, choose: Any) -> None:
    with pytest.raises(Unavailable, match=f"the dry run can't carry .*{operator}"):
        shapes_of(Choosing(choose), (torch.randn(3, 4),))


def test_a_value_that_is_known_is_no_obstacle() -> None:
    def choose(x: torch.Tensor) -> torch.Tensor:
        lengths = torch.tensor([2, 1])
        first, _ = x.split(lengths.tolist())
        return first[torch.tensor([True, False])]

    shapes = shapes_of(Choosing(choose), (torch.randn(3, 4),))
    assert shapes.failure is None and shapes.without_gradient == ()


def test_nothing_is_guessed_where_a_mask_is_computed() -> None:
    weight = torch.empty(4, 4, device="meta")
    with Abstract(), pytest.raises(ValueUnknown, match=r"aten\.masked_scatter"):
        weight.masked_scatter(weight > 0, weight)
