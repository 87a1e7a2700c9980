"""The corpus of the healthy: nothing may be found on any of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.detection.case import Case, Made, adamw
from benchmarks.detection.models import DECODERS, HANDWRITTEN, VLMS, make
from vlmdoctor.targets.synthetic.fields import image_token

PRESETS = ("tiny", "tiny8", "colab")
VARIANTS: list[tuple[str, Callable[[Made], None], tuple[str, ...], dict[str, Any]]] = []


def variant(*families: str, **changes: Any) -> Callable[[Callable[[Made], None]], Callable[[Made], None]]:
    """Registers a change that leaves a family's model healthy; `changes` go into its configuration."""

    def register(change: Callable[[Made], None]) -> Callable[[Made], None]:
        VARIANTS.append((change.__name__.replace("_", "-"), change, families, changes))
        return change

    return register


@variant("llava", "qwen2_5_vl", "gemma3", "smolvlm", "internvl", "llama")
def lora(made: Made) -> None:
    import peft

    with torch.no_grad():
        for parameter in made.model.parameters():  # adapters go to a trained model: its projector is not zero
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.02)
    pattern = r"(?!.*(vision|visual)).*\.(q_proj|v_proj)"  # those of the language model alone
    config = peft.LoraConfig(r=4, target_modules=pattern)
    made.model = peft.get_peft_model(made.model, config)


@variant("llava", "qwen2_5_vl", "internvl")
def lora_everywhere(made: Made) -> None:
    import peft

    made.model = peft.get_peft_model(made.model, peft.LoraConfig(r=4, target_modules="all-linear"))


@variant("llava", "qwen2_5_vl")
def lora_with_the_projector(made: Made) -> None:
    import peft

    pattern = r".*language_model.*(q_proj|v_proj)"
    config = peft.LoraConfig(
        r=4, target_modules=pattern, modules_to_save=[made.parts["projector"].split(".")[-1]]
    )
    made.model = peft.get_peft_model(made.model, config)


@variant("llava", "qwen2_5_vl", "internvl", "paligemma", "idefics3", "nanovlm", "minivlm")
def frozen_tower(made: Made) -> None:
    projector = list(made["projector"].parameters())
    made["vision"].requires_grad_(False)
    for parameter in projector:
        parameter.requires_grad_(True)
    made.more["optimizer"] = adamw(made.model)


@variant("llava", "qwen2_vl", "smolvlm", "llava_scratch", "minivlm")
def projector_alone(made: Made) -> None:
    """The first stage of LLaVA: align the projector."""
    made.model.requires_grad_(False)
    made["projector"].requires_grad_(True)
    made.more["optimizer"] = adamw(made.model)


@variant("llava", "qwen2_5_vl", "gemma3", "idefics3", "llama")
def gradient_checkpointing(made: Made) -> None:
    made.model.gradient_checkpointing_enable({"use_reentrant": False})


@variant("llava", "llama")
def reentrant_checkpointing(made: Made) -> None:
    """As transformers does it by itself, with inputs that require gradients."""
    made.model.gradient_checkpointing_enable({"use_reentrant": True})
    made.model.enable_input_require_grads()


@variant(
    "llava", "qwen2_5_vl", "internvl", text_config={"tie_word_embeddings": True}, tie_word_embeddings=True
)
def tied_head(made: Made) -> None:
    assert made["head"].weight is made["embed"].weight


@variant("llama", "qwen2", "gpt_neox", tie_word_embeddings=True)
def tied_decoder(made: Made) -> None:
    pass


@variant("llava", "smolvlm", "internvl", "paligemma", "gemma3")
def a_row_without_an_image(made: Made) -> None:
    """A batch of one row with an image and one of text alone."""
    image = image_token(made.model.config)
    row = made.batch["input_ids"][1]
    row[row == image] = 7
    made.batch["pixel_values"] = made.batch["pixel_values"][:1]
    if made.model.config.model_type == "gemma3":  # PaliGemma's tell the prompt from the answer
        made.batch["token_type_ids"] = (made.batch["input_ids"] == image).long()
    if "pixel_attention_mask" in made.batch:
        made.batch["pixel_attention_mask"] = made.batch["pixel_attention_mask"][:1]
    if made.model.config.model_type in ("idefics3", "smolvlm"):  # they want as many images for each row
        blank = torch.zeros_like(made.batch["pixel_values"])
        made.batch["pixel_values"] = torch.cat([made.batch["pixel_values"], blank])
        mask = made.batch["pixel_attention_mask"]
        made.batch["pixel_attention_mask"] = torch.cat([mask, torch.zeros_like(mask)])


@variant("llama", "qwen3", "gemma2", "llava", "qwen2_5_vl", "internvl", "codegen", "gptj")
def left_padding(made: Made) -> None:
    pad_a_row(made, left=True)


@variant("llama", "gpt2", "opt", "llava", "qwen2_5_vl", "gemma3", "smolvlm")
def right_padding(made: Made) -> None:
    pad_a_row(made, left=False)


@variant("llama", "llava", "qwen3_vl", "gemma3")
def bfloat16_autocast(made: Made) -> None:
    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return model(**batch).loss

    made.loss_fn = loss_fn


@variant("llama", "nanovlm", "llava")
def compiled(made: Made) -> None:
    made.more["optimizer"] = adamw(made.model)
    made.model = torch.compile(made.model, backend="eager")


@variant("llava", "qwen2_5_vl", "gemma3", "gpt2", attn_implementation="eager")
def eager_attention(made: Made) -> None:
    pass


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


@variant("llava", "qwen2_5_vl", "llama")
def summed_and_divided(made: Made) -> None:
    """A loss that is summed and then divided by the number of labels, as for accumulation."""

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        labels = batch["labels"][:, 1:]
        total = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten(), reduction="sum")
        return total / (labels != -100).sum()

    made.loss_fn = loss_fn


@variant("smolvlm", "gpt2")
def log_probabilities(made: Made) -> None:
    """log_softmax and nll_loss, the long way to cross-entropy."""

    def loss_fn(model: nn.Module, batch: Any) -> torch.Tensor:
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        return F.nll_loss(logits[:, :-1].flatten(0, 1).log_softmax(-1), batch["labels"][:, 1:].flatten())

    made.loss_fn = loss_fn


@variant("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v")
def positions_of_its_own(made: Made) -> None:
    """The model's own positions made by the collator, each row from another number on."""
    given = {name: value for name, value in made.batch.items() if name.endswith(("ids", "thw", "mask"))}
    positions, _ = made.model.model.get_rope_index(**given)
    made.batch["position_ids"] = positions + torch.arange(positions.shape[1])[None, :, None]


@variant("llama", "llava", "opt", "gpt2")
def positions_counted(made: Made) -> None:
    """Padding on the left, and positions that count the real tokens."""
    pad_a_row(made, left=True)
    made.batch["position_ids"] = (made.batch["attention_mask"].cumsum(-1) - 1).clamp(min=0)


@variant("llama", "qwen2")
def packed_with_a_mask(made: Made) -> None:
    """Two samples in one row, each counted from 0, which the attention mask keeps apart."""
    ids, labels = made.batch["input_ids"], made.batch["labels"].clone()
    labels[:, 0] = -100
    length = ids.shape[1]
    inside = torch.block_diag(*[torch.ones(length, length)] * len(ids)).tril()
    hidden = torch.zeros_like(inside).masked_fill(inside == 0, torch.finfo(inside.dtype).min)
    made.batch = {
        "input_ids": ids.reshape(1, -1),
        "labels": labels.reshape(1, -1),
        "position_ids": torch.arange(length).repeat(len(ids))[None],
        "attention_mask": hidden[None, None],
    }


@variant("llava", "llama")
def sgd(made: Made) -> None:
    made.more["optimizer"] = torch.optim.SGD(made.model.parameters(), lr=0.1, momentum=0.9)


def cases() -> list[Case]:
    """All healthy cases."""
    plain = [Case(f"vlm/{family}", family, _maker(family)) for family in VLMS]
    plain += [Case(f"decoder/{family}", family, _maker(family)) for family in DECODERS]
    plain += [Case(f"handwritten/{family}", family, _maker(family)) for family in HANDWRITTEN]
    plain += [Case(f"minivlm/{preset}", "minivlm", _maker(f"minivlm:{preset}")) for preset in PRESETS]
    return plain + [
        Case(f"variant/{name}/{family}", family, _maker(family, change, changes))
        for name, change, families, changes in VARIANTS
        for family in families
    ]


def _maker(
    family: str, change: Callable[[Made], None] | None = None, changes: dict[str, Any] | None = None
) -> Callable[[], Any]:
    def build() -> Any:
        made = make(family, **(changes or {}))
        if change is not None:
            change(made)
        return made.subject()

    return build


def pad_a_row(made: Made, *, left: bool, by: int = 3) -> None:
    """The second row loses the first words of its question and gets padding instead, on one side."""
    batch, row = made.batch, 1
    ids = batch["input_ids"]
    config = getattr(made.model, "config", None)
    pad = getattr(getattr(config, "text_config", config), "pad_token_id", None) or 0
    # From behind the image to in front of the answer there are at least `by` words.
    start = ids.shape[1] - 6 - by
    for name, fill in (
        ("input_ids", pad),
        ("attention_mask", 0),
        ("labels", -100),
        ("targets", -100),
        ("mm_token_type_ids", 0),
        ("token_type_ids", 0),
    ):
        if name in batch and batch[name].shape == ids.shape:
            values = batch[name][row]
            kept = torch.cat([values[:start], values[start + by :]])
            filler = values.new_full((by,), fill)
            batch[name][row] = torch.cat([filler, kept] if left else [kept, filler])
