"""Optimizers and schedules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import lr_scheduler

from benchmarks.detection.case import Made, adamw
from benchmarks.detection.variants.registry import VARIANTS, variant

STEPS, WARMUP = 1000, 20


@variant("llava", "qwen2_5_vl", "minivlm")
def two_learning_rates(made: Made) -> None:
    """No decay for norms and biases, and a higher rate for the projector."""
    projector = {id(p) for p in made["projector"].parameters()}
    rest = [p for p in made.model.parameters() if id(p) not in projector]
    made.more["optimizer"] = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
            {"params": list(made["projector"].parameters()), "lr": 1e-3},
        ],
        lr=1e-4,
    )


@variant("llava", "qwen2_5_vl", "llama")
def warmup_and_cosine(made: Made) -> None:
    from transformers import get_cosine_schedule_with_warmup

    optimizer = adamw(made.model)
    made.more["optimizer"] = optimizer
    made.more["lr_scheduler"] = get_cosine_schedule_with_warmup(optimizer, 10, 1000)
    made.more["training_args"] = {"max_steps": 1000, "gradient_accumulation_steps": 4}


@variant("llava", "qwen2_5_vl", "llama", "nanovlm")
def already_trained(made: Made) -> None:
    """Some steps into its training, with state in the optimizer and gradients from the last step."""
    optimizer = adamw(made.model, 3e-3)
    for _ in range(12):
        out = made.loss_fn(made.model, made.batch) if made.loss_fn else made.model(**made.batch).loss
        optimizer.zero_grad()
        out.backward()
        optimizer.step()
    made.more["optimizer"] = optimizer


@variant("llava", "llama")
def sgd(made: Made) -> None:
    made.more["optimizer"] = torch.optim.SGD(made.model.parameters(), lr=0.1, momentum=0.9)


class EightBits(torch.optim.Optimizer):
    """Adam whose state is kept in bytes, with a scale for each tensor, as 8-bit optimizers keep it."""

    def __init__(self, parameters: Any, lr: float = 1e-3) -> None:
        super().__init__(parameters, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group)

    def _move(self, p: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        first, second = (
            (state[n].float() * state[n + "_scale"] for n in ("first", "second")) if state else (0, 0)
        )
        one, two = group["betas"]
        first = one * first + (1 - one) * p.grad
        second = two * second**4 + (1 - two) * p.grad.square()
        state["step"] = state.get("step", 0) + 1
        for name, value, kind, most in (
            ("first", first, torch.int8, 127),
            ("second", second**0.25, torch.uint8, 255),
        ):
            scale = value.abs().max().clamp(min=1e-30) / most
            state[name], state[name + "_scale"] = (value / scale).round().to(kind), scale
        rate = group["lr"] / (1 - one ** state["step"])
        p.sub_(rate * first / ((second / (1 - two ** state["step"])).sqrt() + group["eps"]))


def _optimizer(name: str, make: Callable[[list[torch.nn.Parameter]], Any], *families: str) -> None:
    def change(made: Made) -> None:
        made.more["optimizer"] = make([p for p in made.model.parameters() if p.requires_grad])

    VARIANTS.append((name, change, families, {}))


def _adafactor(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    from transformers import Adafactor

    return Adafactor(parameters, scale_parameter=True, relative_step=True, warmup_init=True)


def _muon(parameters: list[torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
    """For matrices, with AdamW for the rest."""
    matrices = [p for p in parameters if p.ndim == 2]
    return [torch.optim.Muon(matrices, lr=1e-3), torch.optim.AdamW([p for p in parameters if p.ndim != 2])]


_optimizer("eight-bits", EightBits, "llava", "qwen3_vl")
_optimizer("adafactor", _adafactor, "llava", "gemma3")
_optimizer("muon", _muon, "llava", "llama")
_optimizer("rate-in-a-tensor", lambda p: torch.optim.AdamW(p, lr=torch.tensor(1e-3), amsgrad=True), "llava")
_optimizer("small-rate", lambda p: torch.optim.AdamW(p, lr=1e-6), "llava", "llama")


def _schedule(name: str, make: Callable[[torch.optim.Optimizer], Any], *families: str) -> None:
    def change(made: Made) -> None:
        made.more["optimizer"] = adamw(made.model)
        made.more["lr_scheduler"] = make(made.more["optimizer"])
        made.more["training_args"] = {"max_steps": STEPS, "gradient_accumulation_steps": 4}

    VARIANTS.append((f"schedule-{name}", change, families, {}))


def _of_transformers(kind: str) -> Callable[[torch.optim.Optimizer], Any]:
    more = {
        "cosine_with_restarts": {"num_cycles": 3},
        "cosine_with_min_lr": {"min_lr_rate": 0.1},
        "warmup_stable_decay": {"num_decay_steps": 100, "num_stable_steps": STEPS - WARMUP - 100},
    }

    def make(optimizer: torch.optim.Optimizer) -> Any:
        from transformers import get_scheduler

        return get_scheduler(kind, optimizer, WARMUP, STEPS, more.get(kind))

    return make


for _kind in (
    *("linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "polynomial", "constant"),
    *("constant_with_warmup", "inverse_sqrt", "warmup_stable_decay"),
):
    _schedule(_kind.replace("_", "-"), _of_transformers(_kind), "llava")
# Where there are no steps to look at, one backward pass is: Gemma 3 starts with a projector of zeros.
_schedule("reduce-lr-on-plateau", _of_transformers("reduce_lr_on_plateau"), "llava", "gemma3")
_schedule("one-cycle", lambda o: lr_scheduler.OneCycleLR(o, 1e-3, total_steps=STEPS), "llava")
_schedule("warm-restarts", lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 100, 2), "llava")
_schedule("step", lambda o: lr_scheduler.StepLR(o, 300, 0.1), "llava")
_schedule(
    "one-after-another",
    lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 1e-3, 1.0, WARMUP), lr_scheduler.CosineAnnealingLR(o, STEPS - WARMUP)],
        [WARMUP],
    ),
    "llava",
)
