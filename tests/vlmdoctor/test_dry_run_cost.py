"""What the dry run says a step costs, against real steps on a CPU: bytes, operations, ranks, what fits."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import families
import pytest
import torch
import transformers
from test_dry_run import check, tiny_llava, written
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.detection.shrink import tiny_config
from vlmdoctor.dryrun.abstract import Abstract
from vlmdoctor.dryrun.autocast import Autocast
from vlmdoctor.dryrun.cost import cost_of
from vlmdoctor.dryrun.ledger import Ledger
from vlmdoctor.dryrun.measure import measure
from vlmdoctor.dryrun.meta_copy import meta_copy
from vlmdoctor.dryrun.optimizers import optimizer_bytes
from vlmdoctor.dryrun.plan import Plan, prepared
from vlmdoctor.dryrun.ranks import blocks_of, ranks
from vlmdoctor.dryrun.search import Largest, largest, largest_batch, largest_sequence, settings_that_fit
from vlmdoctor.dryrun.step import dry_step
from vlmdoctor.errors import Unavailable, UserError
from vlmdoctor.knowledge.gpus import CUDA_RESERVED, GPUS, GpuModel
from vlmdoctor.knowledge.parameter_names import canonical_name, role_of
from vlmdoctor.sandbox.call import run
from vlmdoctor.sandbox.restore import copy_of
from vlmdoctor.subject import Subject
from vlmdoctor.targets.synthetic import batch_for


def trained(family: str, setting: str) -> tuple[nn.Module, Any]:
    """A small real model in that setting."""
    model, batch = families.build(family)
    if setting == "lora":
        from peft import LoraConfig, get_peft_model

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    elif setting == "frozen vision":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(role_of(canonical_name(name)) != "vision")
    elif setting == "checkpointing":
        for module in model.modules():
            if getattr(getattr(module, "config", None), "use_cache", None):
                module.config.use_cache = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
    elif setting == "bf16":
        model.to(torch.bfloat16)
        batch = {k: v.bfloat16() if v.is_floating_point() else v for k, v in batch.items()}
    return model, batch


class Observing(TorchDispatchMode):
    """Real operators, and a ledger of what they allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.ledger.observe(func, args, kwargs or {}, out)
        return out


def real_peak(model: nn.Module, batch: Any, optimizer: Any, autocast: bool) -> int:
    """The most bytes alive at once in two real steps, weights included.

    By PyTorch's own tracker, which refuses models with frozen parameters; of these by our ledger.
    """
    own = [*model.parameters(), *model.buffers()]
    whole = all(p.requires_grad for p in model.parameters())
    tracker: Any = MemTracker() if whole else Observing()
    if whole:
        tracker.track_external(model)
    else:
        tracker.ledger.already(own)
    with tracker:
        for _ in range(2):
            if whole:
                tracker.reset_mod_stats()
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss, logits = run(model, copy_of(batch), None)
            del logits
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            del loss
    if whole:
        return max(found["Total"] for found in tracker.get_tracker_snapshot("peak").values())
    return sum(t.nbytes for t in own) + tracker.ledger.peak


STEPS = [
    ("llava", "plain", torch.optim.SGD),
    ("llava", "checkpointing", torch.optim.SGD),
    ("qwen2_vl", "lora", torch.optim.AdamW),
    ("qwen2_vl", "amp", torch.optim.SGD),
    ("paligemma", "frozen vision", torch.optim.AdamW),
    ("idefics3", "bf16", torch.optim.SGD),
    ("internvl", "plain", torch.optim.AdamW),
    ("llama", "checkpointing", torch.optim.AdamW),
    ("gpt2", "amp", torch.optim.SGD),
    ("mixtral", "plain", torch.optim.SGD),
]


@pytest.mark.parametrize(("family", "setting", "kind"), STEPS)
def test_the_peak_is_that_of_real_steps(
    family: str, setting: str, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = trained(family, setting)
    learning = [p for p in model.parameters() if p.requires_grad]
    real = real_peak(model, batch, kind(learning, lr=1e-4, foreach=True), autocast=setting == "amp")
    monkeypatch.setattr("vlmdoctor.dryrun.measure.dry_step", partial(dry_step, device="cpu"))
    plan = Plan(precision="amp-bf16" if setting == "amp" else None)
    measured = measure(Subject(model, batch), plan)
    said = cost_of(measured, "adamw" if kind is torch.optim.AdamW else "sgd").peak
    assert said == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gpt2"])
def test_autocast_casts_what_a_real_one_casts(family: str) -> None:
    model, batch = families.build(family)
    dtypes: dict[str, Any] = {}

    def remember(store: dict[str, Any], name: str) -> Any:
        def hook(module: Any, args: Any, out: Any) -> None:
            if isinstance(out, torch.Tensor):
                store.setdefault(canonical_name(name), (tuple(out.shape), out.dtype))

        return hook

    hooks = [m.register_forward_hook(remember(dtypes, n)) for n, m in model.named_modules()]
    with torch.autocast("cpu", torch.bfloat16):
        run(model, copy_of(batch), None)
    for hook in hooks:
        hook.remove()
    twin, abstract = meta_copy(model), {}
    for name, module in twin.named_modules():
        module.register_forward_hook(remember(abstract, name))
    assert dry_step(twin, batch, device="cpu", autocast=torch.bfloat16).error is None
    assert dtypes == abstract


def test_autocast_of_cuda_keeps_norms_and_softmax_in_float32() -> None:
    x = torch.empty(2, 8, device="meta")
    layer, norm = nn.Linear(8, 8, device="meta"), nn.LayerNorm(8, device="meta")
    with Abstract(), Autocast(torch.float16, "cuda"):
        low = layer(x)
        assert low.dtype is torch.float16
        assert norm(low).dtype is torch.float32
        assert low.softmax(-1).dtype is torch.float32
        assert low.softmax(-1, dtype=torch.float16).dtype is torch.float16
        assert (low @ low.T).dtype is torch.float16
        assert nn.functional.cross_entropy(low, torch.zeros(2, dtype=torch.long)).dtype is torch.float32
        assert nn.functional.gelu(low).dtype is torch.float16


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("adamw", torch.optim.AdamW),
        ("sgd", torch.optim.SGD),
        ("sgd-momentum", lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9)),
        ("adafactor", lambda p, lr: _adafactor(p)),
    ],
)
def test_optimizers_keep_what_is_said(name: str, make: Callable[..., Any]) -> None:
    parameters = [nn.Parameter(torch.ones(*shape)) for shape in ((64, 48), (48,), (3, 8, 16))]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = make(parameters, lr=0.01)
    optimizer.step()
    real = sum(
        value.nbytes
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.ndim
    )
    assert optimizer_bytes(name, parameters)[0] == real


def _adafactor(parameters: Any) -> Any:
    from transformers.optimization import Adafactor

    return Adafactor(parameters)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gpt2", "gemma2"])
def test_operations_are_those_of_pytorch(family: str, checkpointing: bool) -> None:
    model, batch = trained(family, "checkpointing" if checkpointing else "plain")
    with FlopCounterMode(display=False) as counter:
        loss, _ = run(model, copy_of(batch), None)
        loss.backward()
    done = dry_step(meta_copy(model), batch, device="cpu")
    assert done.flops_forward + done.flops_backward == counter.get_total_flops()


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 50), nn.Linear(50, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Stack(nn.Module):
    """Rows that two ranks can't share evenly, layers in a list, and the rest outside it."""

    def __init__(self, width: int = 33) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(10, width), nn.Linear(width, 7)
        self.layers = nn.ModuleList([Block(width) for _ in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x).square().mean()


REAL_RANK = """
import json, sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode
from vlmdoctor.dryrun.ledger import Ledger
from vlmdoctor.dryrun.ranks import local, sharded

# the model
# the mode
def step(lower):
    model = sharded(Stack(), init_device_mesh("cpu", (2,)), lower)
    watching = Observing()
    watching.ledger.already(map(local, model.parameters()))
    with watching.ledger.resizes(), watching:
        model(torch.randn(64, 10)).backward()
    optimizer = torch.optim.AdamW(model.parameters())
    optimizer.step()
    return {
        "parameters": sum(local(p).nbytes for p in model.parameters()),
        "gradients": sum(local(p.grad).nbytes for p in model.parameters()),
        "optimizer": sum(local(v).nbytes for s in optimizer.state.values() for v in s.values() if v.ndim),
        "peak": watching.ledger.peak,
    }

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
print(json.dumps({"plain": step(None), "amp-bf16": step(torch.bfloat16)}))
dist.destroy_process_group()
"""


def test_a_rank_holds_what_a_real_one_holds(tmp_path: Path) -> None:
    """Two processes that really exchange, by gloo."""
    program = "from typing import Any\n" + REAL_RANK.replace(
        "# the model\n", inspect.getsource(Block) + inspect.getsource(Stack)
    ).replace("# the mode\n", inspect.getsource(Observing))
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    ended = [process.communicate(timeout=240) for process in running]
    assert all(process.returncode == 0 for process in running), ended
    first, second = (json.loads(out.splitlines()[-1]) for out, _ in ended)
    for setting, precision in (("plain", None), ("amp-bf16", "amp-bf16")):
        plan = Plan(precision=precision, shard="fsdp2", world_size=2)
        measured = measure(Subject(Stack(), {"x": torch.randn(64, 10)}), plan)
        cost, real = cost_of(measured), first[setting]
        assert real["parameters"] > second[setting]["parameters"]
        for part in ("parameters", "gradients", "optimizer"):
            assert getattr(cost, part) == real[part]
        assert measured.peak == pytest.approx(real["peak"], rel=0.05)


def test_ranks_leave_nothing_behind() -> None:
    import torch.distributed as dist

    from vlmdoctor.dryrun.ranks import without_weights

    subject = Subject(Stack(), {"x": torch.randn(4, 10)})
    found = [measure(subject, Plan(shard="fsdp2", world_size=size)).parameters for size in (2, 4, 4, 32, 2)]
    assert found[0] == found[-1] > found[1] == found[2] > found[3]
    assert not dist.is_initialized()
    with pytest.raises(RuntimeError, match="stop"), ranks(8), without_weights():
        raise RuntimeError("stop")
    assert not dist.is_initialized()
    assert all(p.grad is None and not p.is_meta for p in subject.model.parameters())


def test_ddp_holds_the_gradients_twice() -> None:
    """PyTorch's own DDP lays out buckets as large as the gradients."""
    from torch.nn.parallel import DistributedDataParallel

    twin, ledger = meta_copy(Stack()), Ledger()
    ledger.already(twin.parameters())
    with ranks(4), Abstract(ledger.observe):
        wrapped = DistributedDataParallel(twin, init_sync=False)
    measured = measure(Subject(Stack(), {"x": torch.randn(4, 10)}), Plan(shard="ddp", world_size=4))
    assert measured.buckets == measured.gradients  # all of it learns
    assert ledger.live == pytest.approx(measured.buckets, rel=0.02)
    del wrapped


def test_blocks_are_the_layers_of_tower_and_decoder() -> None:
    model, _ = families.build("llava")
    config = model.config
    count = config.vision_config.num_hidden_layers + config.text_config.num_hidden_layers
    assert sum("Layer" in type(block).__name__ for block in blocks_of(model)) == count
    assert len(blocks_of(Stack())) == 4


def test_a_larger_size_is_found_in_few_tries() -> None:
    tried = []

    def even(size: int) -> int:
        tried.append(size)
        return max(500, 100 + 7 * size)

    found = largest(even, {1: 500}, 1000, guess=200, confirmable=10_000, most=10_000, held=90)
    assert found == Largest(128) and len(tried) <= 3

    def square(size: int) -> int:
        return 50 + size + size * size // 10

    found = largest(square, {10: square(10)}, 100_000, guess=4096, confirmable=4096, most=4096)
    assert found.size is not None and found.confirmed
    assert square(found.size) <= 100_000 < square(round(found.size * 1.05))
    found = largest(even, {1: 500}, 10**6, guess=10**6, confirmable=1000, most=10**9, held=100)
    assert found == Largest((10**6 - 100) // 7, confirmed=False)


def test_the_largest_batch_and_sequence_are_shown_to_fit(tmp_path: Path) -> None:
    from vlmdoctor.dryrun.estimate import without_pixels
    from vlmdoctor.targets.synthetic import batch_for

    model, _ = families.build("llava")
    gpu = replace(GPUS["t4"], memory=1.05)
    subject, plan = Subject(model, batch_for(model)), Plan()
    base = measure(subject, plan)

    def make(rows: int, length: int | None) -> Any:
        with without_pixels():
            return batch_for(model, batch_size=rows, length=length)

    tokens = subject.batch["input_ids"].shape[1]
    room = int(0.05 * (1 << 30))
    found = largest_batch(subject, plan, base, gpu, (1, tokens), make)
    assert found.confirmed and found.size is not None
    assert cost_of(measure(subject, plan, make(found.size, None))).peak <= room
    assert cost_of(measure(subject, plan, make(round(found.size * 1.05) + 1, None))).peak > room
    longest = largest_sequence(subject, plan, base, gpu, (1, tokens), 4 * tokens, make)
    assert longest == Largest(4 * tokens, limit=True)


def test_the_command_tells_of_ranks_and_settings(tmp_path: Path) -> None:
    target = written(tmp_path, tiny_llava())
    told = check(target, shard="fsdp2", world_size=2, precision="amp-bf16", gpu="T4").facts["dry_run"]["cost"]
    assert told["ranks"]["world_size"] == 2 and told["ranks"]["reduced_in"] == "float32"
    assert told["precision"] == "float32 under bfloat16 autocast"
    assert told["gpu"]["fits"] and told["gpu"]["lacks_bfloat16"]
    whole = check(target, shard="ddp", world_size=2).facts["dry_run"]["cost"]["bytes"]
    assert told["bytes"]["parameters"] < whole["parameters"] and whole["buckets"] >= whole["gradients"]


def test_training_arguments_are_taken(tmp_path: Path) -> None:
    plan = Plan().as_trained({"bf16": True, "optim": "paged_adamw_8bit"}, optimizer_named=False)
    assert (plan.autocast, plan.dtype, plan.optimizer) == (torch.bfloat16, None, "paged-adamw-8bit")
    plan = Plan(precision="fp32").as_trained(
        {"fp16": True, "gradient_checkpointing": True, "optim": "sgd"}, optimizer_named=True
    )
    assert (plan.autocast, plan.checkpointing, plan.optimizer) == (None, True, "adamw")


def test_a_frozen_part_needs_no_gradient() -> None:
    model, _ = families.build("llava")
    kept = {
        role_of(canonical_name(n))
        for n, p in prepared(model, Plan(freeze=("vision",))).named_parameters()
        if p.requires_grad
    }
    assert "vision" not in kept and "projector" in kept
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"world_size": 4}, "--world-size needs to know"),
        ({"shard": "fsdp2"}, "needs the number of ranks"),
        ({"shard": "zero9", "world_size": 2}, "--shard can't be 'zero9'; choose one of ddp, fsdp2"),
        ({"shard": "fsdp2", "world_size": 60000}, "--world-size 60000 is more than the layers can be"),
        ({"shard": "fsdp2", "world_size": 10**9}, "more than the dry run takes"),
        ({"freeze": "eyes"}, "--freeze can't be 'eyes'"),
    ],
)
def test_settings_that_there_are_not(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        check(written(tmp_path, tiny_llava()), **options)


def test_a_model_without_layers_is_not_sharded() -> None:
    single = Subject(nn.Linear(4, 4), (torch.randn(2, 4),), lambda model, batch: model(*batch).sum())
    with pytest.raises(UserError, match="Linear has no repeated layers"):
        measure(single, Plan(shard="fsdp2", world_size=2))


def test_a_step_that_raises_has_no_cost() -> None:
    with pytest.raises(Unavailable, match="the step raises RuntimeError"):
        measure(Subject(Stack(), {"x": torch.randn(4, 11)}), Plan())


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_attention_in_one_kernel_is_offered_where_the_model_writes_it_out(family: str) -> None:
    config = tiny_config(family)
    config._attn_implementation = "eager"
    kind = transformers.LlamaForCausalLM if family == "llama" else transformers.LlavaForConditionalGeneration
    with torch.device("meta"):
        model = kind._from_config(config, attn_implementation="eager")
    subject = Subject(model, batch=batch_for(model, length=512))
    eager, fused = (measure(subject, Plan(attention=attention)) for attention in (None, "sdpa"))
    assert fused.peak < eager.peak and fused.parameters == eager.parameters
    between = (cost_of(eager, "sgd").peak + cost_of(fused, "sgd").peak) // 2
    gpu = GpuModel((between + CUDA_RESERVED) / (1 << 30), 1, 1)
    offered = settings_that_fit(subject, Plan(optimizer="sgd"), eager, gpu)
    assert offered[0]["kind"] == "fused attention" and offered[0]["options"] == 'attn_implementation="sdpa"'
    assert offered[0]["peak"] == cost_of(fused, "sgd").peak
    model.set_attn_implementation("sdpa")
    again = settings_that_fit(subject, Plan(optimizer="sgd"), measure(subject, Plan()), gpu)
    assert "fused attention" not in [setting["kind"] for setting in again]
