"""What is used beside what is trained: unregistered layers, zeros, hooks, masks, grids, other optimizers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.detection.case import Made, adamw
from benchmarks.detection.faults.plant import altered, fault, graft


@fault(
    "X-layer-in-a-list", families="llava nanovlm gemma3", rules="parameters-not-registered", at="beside[0]"
)
def layer_in_a_list(made: Made) -> None:
    """A layer behind the projector is kept in a plain list."""
    projector = made["projector"]
    projector.beside = []

    def forward(original, *args, **kwargs):
        def through(features: Tensor) -> Tensor:
            if not projector.beside:
                projector.beside.append(nn.Linear(features.shape[-1], features.shape[-1]))
            return features + projector.beside[0](features)

        return altered(original(*args, **kwargs), through)

    graft(projector, forward)
    made.model(**made.batch)  # the layer is there before anything is checked


@fault("X-layer-made-in-forward", families="llava nanovlm internvl", rules="parameters-not-registered", at="")
def layer_made_in_forward(made: Made) -> None:
    """A layer behind the projector is made anew in each forward pass."""
    graft(
        made["projector"],
        lambda original, *args, **kwargs: altered(
            original(*args, **kwargs), lambda x: nn.Linear(x.shape[-1], x.shape[-1])(x)
        ),
    )


@fault(
    "X-projector-initialised-in-forward",
    families="llava gemma3 nanovlm",
    rules="weights-overwritten",
    at="part:projector",
)
def initialised_in_forward(made: Made) -> None:
    """The projector's weights are initialised in each forward pass."""
    projector = made["projector"]

    def forward(original, *args, **kwargs):
        with torch.no_grad():
            for parameter in projector.parameters():
                nn.init.normal_(parameter, std=0.02)
        return original(*args, **kwargs)

    graft(projector, forward)


@fault(
    "X-projector-of-zeros",
    families="llava internvl mistral3",
    rules="zero-weights-block",
    at="part:projector",
)
def projector_of_zeros(made: Made) -> None:
    """Every weight of the projector is zero."""
    for parameter in made["projector"].parameters():
        parameter.data.zero_()


@fault(
    "X-adapters-of-zeros", families="llava gemma3 qwen2_5_vl", rules="zero-weights-block", at="lora_A lora_B"
)
def adapters_of_zeros(made: Made) -> None:
    """Both matrices of each LoRA adapter are zero."""
    _adapters(made)
    for name, parameter in made.model.named_parameters():
        if "lora_" in name:
            parameter.data.zero_()


@fault("X-adapters-merged", families="llava internvl", rules="adapters-merged", at="q_proj")
def adapters_merged(made: Made) -> None:
    """The adapters were merged for generation and not taken out again."""
    _adapters(made)
    made.model.merge_adapter()


@fault(
    "X-gradient-zeroed-by-a-hook",
    families="llava idefics3 nanovlm",
    rules="gradient-zeroed-by-hook",
    at="part:projector",
)
def zeroed_by_a_hook(made: Made) -> None:
    """A hook on the projector's weights puts zeros in the place of their gradients."""
    for parameter in made["projector"].parameters():
        parameter.register_hook(torch.zeros_like)


@fault("X-mask-inverted-in-the-batch", families="llava paligemma idefics3", rules="mask-hides-answers", at="")
def mask_inverted_in_the_batch(made: Made) -> None:
    """The attention mask is 1 at padding and 0 at the text."""
    mask = made.batch["attention_mask"].clone()
    mask[0, :4] = 0
    made.batch["attention_mask"] = 1 - mask


@fault("X-mask-of-zeros", families="gemma3 internvl llama", rules="mask-hides-answers", at="attention_mask")
def mask_of_zeros(made: Made) -> None:
    """The attention mask is 0 everywhere."""
    made.batch["attention_mask"] = torch.zeros_like(made.batch["attention_mask"])


@fault(
    "X-pixel-mask-of-zeros",
    families="idefics3 smolvlm",
    rules="pixel-mask-hides-images",
    at="pixel_attention_mask",
)
def pixel_mask_of_zeros(made: Made) -> None:
    """The mask over the pixels is 0 everywhere."""
    pixels = made.batch["pixel_values"]
    made.batch["pixel_attention_mask"] = torch.zeros(*pixels.shape[:2], *pixels.shape[-2:], dtype=torch.long)


@fault(
    "X-grid-of-another-image",
    families="qwen2_5_vl qwen3_vl qwen2_vl",
    rules="image-grid-misfit",
    at="image_grid_thw",
)
def grid_of_another_image(made: Made) -> None:
    """The grids are of images twice as high as the pixels."""
    made.batch["image_grid_thw"] = made.batch["image_grid_thw"] * torch.tensor([1, 2, 1])


@fault("X-maximised", families="llava llama gemma3", rules="optimizer-maximizes", at="")
def maximised(made: Made) -> None:
    """The optimizer climbs the loss."""
    made.more["optimizer"] = torch.optim.AdamW(made.model.parameters(), lr=1e-3, maximize=True)


@fault("X-decay-of-ten-thousand", families="llava llama", rules="decay-erases-weights", at="")
def decay_of_ten_thousand(made: Made) -> None:
    """Weight decay takes the whole weight in each step."""
    made.more["optimizer"] = torch.optim.AdamW(made.model.parameters(), lr=1e-4, weight_decay=10_000.0)


@fault(
    "G07-scheduler-of-another-optimizer",
    families="llava llama",
    rules="scheduler-of-another-optimizer",
    at="",
)
def scheduler_of_another_optimizer(made: Made) -> None:
    """The optimizer was made again, the scheduler was not."""
    before = adamw(made.model)
    made.more["lr_scheduler"] = torch.optim.lr_scheduler.CosineAnnealingLR(before, 100)
    made.more["optimizer"] = adamw(made.model)


@fault("G07-lambda-returns-the-rate", families="llava llama", rules="lr-far-from-base", at="")
def lambda_returns_the_rate(made: Made) -> None:
    """The function of a LambdaLR returns the learning rate, and not a factor of it."""
    made.more["optimizer"] = adamw(made.model)
    made.more["lr_scheduler"] = torch.optim.lr_scheduler.LambdaLR(
        made.more["optimizer"], lambda step: 1e-3 * (1 - step / 100)
    )
    made.more["training_args"] = {"max_steps": 100}


@fault("X-adapters-scaled-to-zero", families="llava qwen2_5_vl", rules="adapters-without-effect", at="q_proj")
def adapters_scaled_to_zero(made: Made) -> None:
    """LoRA with an alpha of zero."""
    _adapters(made, lora_alpha=0)


@fault("X-layers-are-one", families="llava nanovlm llama", rules="layer-instances-shared", at="layers blocks")
def layers_are_one(made: Made) -> None:
    """All decoder layers are one: a list that was multiplied."""
    layers = made["layers"] if made.parts else made.model.get_submodule("model.layers")
    for i in range(1, len(layers)):
        layers[i] = layers[0]


def _adapters(made: Made, **changes: Any) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=r".*(language_model|text_model).*q_proj", **changes)
    made.model = get_peft_model(made.model, config)


@fault("X-start-token-twice", families="llava smolvlm llama", rules="start-token-twice", at="row")
def start_token_twice(made: Made) -> None:
    """The chat template and the tokenizer both write the start token."""
    shape = made.batch["input_ids"].shape
    for name, value in made.batch.items():
        if value.shape == shape:
            made.batch[name] = torch.cat([value[:, :1], value], dim=1)


@fault("X-frozen-norms-in-training-mode", families="prefix_lm", rules="batchnorm-not-in-eval", at="cnn")
def frozen_norms_in_training_mode(made: Made) -> None:
    """model.train() puts the frozen CNN into training mode too."""
    made.model.cnn.train()


@fault(
    "B12-cross-attention-mask-of-the-prompt",
    families="mllama",
    rules="pixel-mask-hides-images",
    at="cross_attention_mask",
)
def cross_attention_mask_of_the_prompt(made: Made) -> None:
    """The cross-attention mask was made for the prompt, and is 0 for the answer."""
    mask = torch.ones(*made.batch["input_ids"].shape, 1, 1, dtype=torch.long)
    mask[:, -8:] = 0
    made.batch["cross_attention_mask"] = mask
