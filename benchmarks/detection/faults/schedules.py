"""What optimizer and scheduler keep from step to step, and bring along when a run is resumed."""

from __future__ import annotations

from typing import Any

import torch
from transformers import get_cosine_schedule_with_warmup

from benchmarks.detection.case import Made, adamw
from benchmarks.detection.faults.plant import fault


@fault("X-epsilon-of-1e8", families="llava qwen3 nanovlm", rules="epsilon-swamps-gradient", at="AdamW")
def epsilon_of_1e8(made: Made) -> None:
    """AdamW with eps=1e8, a minus forgotten."""
    learning = [p for p in made.model.parameters() if p.requires_grad]
    made.more["optimizer"] = torch.optim.AdamW(learning, lr=1e-3, eps=1e8)


@fault("X-layer-decay-upside-down", families="llava internvl", rules="weights-not-moving", at="projector")
def layer_decay_upside_down(made: Made) -> None:
    """Rates that fall from layer to layer fall towards the head, and by a tenth each."""
    depth = {name: 0 if "vision" in name else 12 for name, _ in made.model.named_parameters()}
    groups = [{"params": [p], "lr": 1e-3 * 0.1 ** depth[name]} for name, p in made.model.named_parameters()]
    made.more["optimizer"] = torch.optim.AdamW(groups, lr=1e-3)


@fault("G07-cosine-over-epochs", families="llava qwen3_vl llama", rules="lr-rises-again", at="LambdaLR")
def cosine_over_epochs(made: Made) -> None:
    """A cosine made for three epochs is stepped with every batch."""
    made.more["optimizer"] = adamw(made.model)
    made.more["lr_scheduler"] = get_cosine_schedule_with_warmup(made.more["optimizer"], 0, 3)
    made.more["training_args"] = {"max_steps": 3000}


@fault("F10-schedule-not-restored", families="llava llama", rules="scheduler-not-restored", at="LambdaLR")
def schedule_not_restored(made: Made) -> None:
    """The optimizer is resumed, and its schedule begins with the warm-up."""
    trained = _trained(made)
    optimizer = adamw(made.model)
    made.more["lr_scheduler"] = get_cosine_schedule_with_warmup(optimizer, 10, 100)
    state = trained.state_dict()
    optimizer.load_state_dict({**state, "param_groups": optimizer.state_dict()["param_groups"]})
    made.more["optimizer"] = optimizer


@fault(
    "F10-state-of-another-order", families="idefics3 llava", rules="optimizer-state-misfit", at="head embed"
)
def state_of_another_order(made: Made) -> None:
    """The state is loaded into an optimizer whose parameters stand in reverse."""
    trained = _trained(made)
    optimizer = torch.optim.AdamW([p for p in made.model.parameters() if p.requires_grad][::-1], lr=1e-3)
    state = trained.state_dict()
    optimizer.load_state_dict({**state, "param_groups": optimizer.state_dict()["param_groups"]})
    made.more["optimizer"] = optimizer


def _trained(made: Made) -> Any:
    """AdamW some steps into the training."""
    optimizer = adamw(made.model)
    for _ in range(3):
        made.model(**made.batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer
