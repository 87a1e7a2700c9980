"""What the optimizer and the schedule do: groups, rates, precision, intent."""

from __future__ import annotations

import copy

import torch

from benchmarks.detection.case import Made, adamw
from benchmarks.detection.faults.plant import fault
from benchmarks.detection.models import make

STILL = "weights-not-moving lr* OPT*"


@fault(
    "E14-built-before-unfreezing",
    families="llava qwen2_5_vl internvl minivlm",
    rules="trainable-not-in-optimizer weights-not-moving",
    at="part:projector",
)
def built_before_unfreezing(made: Made) -> None:
    """The projector was frozen when the optimizer was made."""
    made["projector"].requires_grad_(False)
    made.more["optimizer"] = adamw(made.model)
    made["projector"].requires_grad_(True)


@fault("X-optimizer-of-a-copy", families="llava llama nanovlm", rules="optimizer-holds-other-tensors", at="")
def optimizer_of_a_copy(made: Made) -> None:
    """The optimizer was made for the model before it was copied."""
    made.more["optimizer"] = adamw(copy.deepcopy(made.model))


@fault(
    "X-optimizer-of-another-load",
    families="llava minivlm",
    rules="optimizer-holds-other-tensors trainable-not-in-optimizer weights-not-moving",
    at="",
)
def optimizer_of_another_head(made: Made) -> None:
    """The projector was replaced after the optimizer was made."""
    made.more["optimizer"] = adamw(made.model)
    owner, _, name = made.parts["projector"].rpartition(".")
    setattr(made.model.get_submodule(owner), name, copy.deepcopy(made["projector"]))


@fault(
    "X-rate-of-the-projector-is-zero", families="llava qwen2_5_vl nanovlm", rules=STILL, at="part:projector"
)
def projector_rate_zero(made: Made) -> None:
    """One group has the learning rate 0."""
    projector = {id(p) for p in made["projector"].parameters()}
    made.more["optimizer"] = torch.optim.AdamW(
        [
            {"params": [p for p in made.model.parameters() if id(p) not in projector]},
            {"params": list(made["projector"].parameters()), "lr": 0.0},
        ],
        lr=1e-3,
    )


@fault("G07-rate-is-zero-from-the-start", families="llava llama minivlm", rules=STILL, at="")
def rate_zero(made: Made) -> None:
    """The schedule was made for no steps at all: the learning rate is 0."""
    optimizer = adamw(made.model)
    made.more["optimizer"] = optimizer
    made.more["lr_scheduler"] = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)


@fault("G07-schedule-ends-early", families="llava llama", rules="lr* schedule* OPT*", at="")
def schedule_ends_early(made: Made) -> None:
    """The schedule reaches 0 after an eighth of the planned steps."""
    from transformers import get_linear_schedule_with_warmup

    optimizer = adamw(made.model)
    made.more["optimizer"] = optimizer
    made.more["lr_scheduler"] = get_linear_schedule_with_warmup(optimizer, 10, 125)
    made.more["training_args"] = {"max_steps": 1000}


@fault("E18-bfloat16-updates-lost", families="llava llama nanovlm", rules=f"{STILL} NUM*", at="")
def updates_lost(made: Made) -> None:
    """Weights in bfloat16 and a learning rate of 1e-7: the updates are rounded away."""
    made.model.bfloat16()
    for name, value in made.batch.items():
        if value.is_floating_point():
            made.batch[name] = value.bfloat16()
    made.more["optimizer"] = torch.optim.SGD(made.model.parameters(), lr=1e-7)


@fault("X-stepped-twice", families="llava llama", rules="duplicate-parameters", at="")
def stepped_twice(made: Made) -> None:
    """Two optimizers hold the head."""
    made.more["optimizer"] = [adamw(made.model), torch.optim.AdamW(made.model.lm_head.parameters(), lr=1e-3)]


@fault(
    "E09-pattern-matches-nothing",
    families="llava qwen2_5_vl minivlm",
    rules="pattern-matches-nothing",
    at="mm_projector_v2",
)
def pattern_matches_nothing(made: Made) -> None:
    """The declared name is from another code base."""
    made.more["trainable"] = ["mm_projector_v2"]


@fault(
    "E09-frozen-tower-still-trains",
    families="llava internvl minivlm",
    rules="trained-by-mistake",
    at="part:vision",
)
def tower_still_trains(made: Made) -> None:
    """A typo (requires_grads = False) leaves the tower trainable, which was declared to be frozen."""
    for parameter in made["vision"].parameters():
        parameter.requires_grads = False
    names = (made.parts[part] for part in ("projector", "language", "embed", "head"))
    made.more["trainable"] = [name.split(".")[-1] for name in names]


@fault(
    "E10-lora-on-the-tower",
    families="llava internvl smolvlm",
    rules="trained-by-mistake lora-on-vision",
    at="part:vision vision",
)
def lora_on_the_tower(made: Made) -> None:
    """LoRA's q_proj and v_proj also fit the tower's."""
    import peft

    made.model = peft.get_peft_model(made.model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


@fault(
    "E17-left-in-eval",
    families="llava prefix_lm llama",
    rules="eval* mode* PARAM* OPT* CFG*",
    at="",
    attention_dropout=0.0,
)
def left_in_eval(made: Made) -> None:
    """The model stays in evaluation mode, and it has dropout."""
    for module in made.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.1
    if not any(isinstance(module, torch.nn.Dropout) for module in made.model.modules()):
        made.model.get_input_embeddings().register_module("drop", torch.nn.Dropout(0.1))
        made.model.get_input_embeddings().register_forward_hook(lambda module, args, out: module.drop(out))
    made.model.eval()


@fault(
    "X-dropout-of-nine-tenths", families="nanovlm minivlm prefix_lm", rules="dropout* PARAM* CFG* NUM*", at=""
)
def dropout_too_high(made: Made) -> None:
    """Nine tenths of the features are dropped."""
    found = [module for module in made.model.modules() if isinstance(module, torch.nn.Dropout)]
    for module in found:
        module.p = 0.9
    if not found:
        projector = made["projector"]
        projector.register_module("drop", torch.nn.Dropout(0.9))
        projector.register_forward_hook(lambda module, args, out: module.drop(out))
    made.model.train()


@fault(
    "X-learning-rate-of-a-thousand",
    families="llava llama minivlm",
    rules="exploding-gradient non-finite loss* LOSS* OPT* NUM*",
    at="",
)
def rate_of_a_thousand(made: Made) -> None:
    """SGD with a learning rate of a thousand."""
    made.more["optimizer"] = torch.optim.SGD(made.model.parameters(), lr=1000.0)


@fault("X-adam-with-a-rate-of-one", families="smolvlm qwen3 nanovlm", rules="loss* LOSS* OPT* NUM*", at="")
def rate_of_one(made: Made) -> None:
    """AdamW with the learning rate 1."""
    made.more["optimizer"] = torch.optim.AdamW(made.model.parameters(), lr=1.0)


@fault(
    "F10-optimizer-not-restored-on-the-model",
    families="llava",
    rules="optimizer-holds-other-tensors trainable-not-in-optimizer weights-not-moving",
    at="",
)
def model_built_again(made: Made) -> None:
    """The model was built again after the optimizer."""
    made.more["optimizer"] = adamw(make("llava").model)
