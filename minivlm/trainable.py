"""What learns: named policies and patterns, the learning rate of each part, and low-rank adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from torch import nn

from minivlm.errors import UserError
from minivlm.train_config import POLICIES, TrainConfig, unknown

if TYPE_CHECKING:
    import torch

PATTERNS: dict[str, tuple[str, ...]] = {
    "all": ("*",),
    "frozen-vision": ("*vision_proj.*", "*language_model.*", "*lm_head.*"),
    "projector": ("*vision_proj.*",),
    "vision": ("*vision_encoder.*", "contrastive_head.*"),
    "language": ("*language_model.*", "*lm_head.*"),
}
assert set(PATTERNS) == set(POLICIES)

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Part:
    """One module of the architecture: how many of its parameters there are, and how many of them learn."""

    name: str
    total: int
    trainable: int

    @property
    def label(self) -> str:
        """[trainable], [frozen] or [partly trainable]."""
        if self.trainable == self.total:
            return "[trainable]"
        return "[partly trainable]" if self.trainable else "[frozen]"


def patterns_of(policy: str, model: nn.Module) -> tuple[str, ...]:
    """The parameter-name patterns of a policy's name or of comma-separated patterns.

    Raises:
        UserError: A policy that does not exist, or a pattern that matches no parameter.
    """
    names = [name for name, _ in model.named_parameters()]
    if policy in PATTERNS:
        # The contrastive head exists in stage clip only, an output head of its own only where it isn't tied.
        return tuple(p for p in PATTERNS[policy] if any(fnmatchcase(name, p) for name in names))
    patterns = tuple(pattern.strip() for pattern in policy.split(",") if pattern.strip())
    if not any(character in policy for character in "*?[."):
        raise UserError(unknown("--trainable", policy, PATTERNS))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(
                f"--trainable has the pattern '{pattern}', which matches no parameter; names look like "
                f"{names[0]}."
            )
    return patterns


def set_trainable(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Lets exactly the matching parameters learn; adapters, where there are any, learn in any case.

    Raises:
        UserError: Nothing at all would learn.
    """
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or any(fnmatchcase(name, pattern) for pattern in patterns))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"--trainable leaves nothing to learn: no parameter matches {', '.join(patterns)}.")


def parts(model: nn.Module) -> Iterator[Part]:
    """The modules of the architecture diagram, in order; a parameter that two of them share counts once."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        count = counts.setdefault(part_of(name), [0, 0])
        count[0] += parameter.numel()
        count[1] += parameter.numel() if parameter.requires_grad else 0
    for name, (total, learning) in counts.items():
        yield Part(name, total, learning)


def part_of(name: str) -> str:
    """`model.vision_proj.linear.weight` -> `vision_proj`."""
    pieces = name.split(".")
    return pieces[1] if pieces[0] == "model" and len(pieces) > 1 else pieces[0]


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """One optimizer group for each part and kind of decay; `peak_lr` is what the schedule is multiplied with.

    Only the matrices of linear and convolution layers decay: to pull norms, biases or embeddings towards zero
    has no meaning that anybody wants.
    """
    decaying = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
    } - {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    groups: dict[tuple[float, bool], list[torch.Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            key = (_learning_rate(part_of(name), config), id(parameter) in decaying)
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": params, "lr": lr, "peak_lr": lr, "weight_decay": config.weight_decay if decays else 0.0}
        for (lr, decays), params in groups.items()
    ]


def _learning_rate(part: str, config: TrainConfig) -> float:
    own = {
        "vision_encoder": config.lr_vision,
        "vision_proj": config.lr_projector,
        "language_model": config.lr_language,
        "lm_head": config.lr_language,
    }.get(part)
    return config.lr if own is None else own


def add_adapters(model: nn.Module, rank: int) -> None:
    """Puts low-rank adapters of that rank into the decoder's layers, in place.

    Raises:
        UserError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("--lora-rank needs peft; install it with: pip install 'vlmdoctor[lora]'") from error
    targets = rf".*language_model\..*\.({'|'.join(LORA_TARGETS)})"
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets), model)


def merged_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights with all adapters added in, under the names of the model without adapters."""
    from peft.tuners.lora import LoraLayer

    state = {name: value for name, value in model.state_dict().items() if "lora_" not in name}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            weight = f"{name}.base_layer.weight"
            state[weight] = state[weight] + module.get_delta_weight("default")
    return {name.replace(".base_layer.", "."): value for name, value in state.items()}
