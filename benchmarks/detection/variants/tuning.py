"""Which parts learn, and how: adapters, freezing, checkpointing, tied and grown tables."""

from __future__ import annotations

from benchmarks.detection.case import Made, adamw
from benchmarks.detection.models import as_if_trained
from benchmarks.detection.variants.registry import as_trained, of_role, variant

LANGUAGE = r"(?!.*(vision|visual)).*\.(q_proj|v_proj)"  # those of the language model alone


@variant("llava", "qwen2_5_vl", "gemma3", "smolvlm", "internvl", "llama", "mllama", "llama4", "deepseek_vl")
def lora(made: Made) -> None:
    import peft

    as_trained(made)
    made.model = peft.get_peft_model(made.model, peft.LoraConfig(r=4, target_modules=LANGUAGE))


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
    as_if_trained(made["vision"].parameters())
    for parameter in projector:
        parameter.requires_grad_(True)
    made.more["optimizer"] = adamw(made.model)


@variant("llava", "qwen2_vl", "smolvlm", "llava_scratch", "minivlm")
def projector_alone(made: Made) -> None:
    """The first stage of LLaVA: align the projector."""
    made.model.requires_grad_(False)
    as_if_trained(made.model.parameters())
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


@variant("llava", "qwen3_vl", "mllama")
def weight_decomposed_adapters(made: Made) -> None:
    import peft

    as_trained(made)
    config = peft.LoraConfig(r=4, use_dora=True, use_rslora=True, target_modules=LANGUAGE)
    made.model = peft.get_peft_model(made.model, config)


@variant("llava", "gemma3")
def scaled_activations(made: Made) -> None:
    """IA3: vectors that scale keys and values."""
    import peft

    as_trained(made)
    config = peft.IA3Config(target_modules=LANGUAGE, feedforward_modules=[])
    made.model = peft.get_peft_model(made.model, config)


@variant("idefics3", "mllama", "florence2", "qwen3_5", "glm4v", "lfm2_vl")
def frozen_vision(made: Made) -> None:
    for parameter in of_role(made, "vision"):
        parameter.requires_grad_(False)


@variant("gemma3", "mllama", "llava_onevision", "qwen3_5")
def frozen_language(made: Made) -> None:
    as_trained(made)
    for parameter in of_role(made, "language", "head"):
        parameter.requires_grad_(False)


@variant("gemma3", "paligemma", "internvl", "florence2", "aria")
def projector_of_a_trained_model(made: Made) -> None:
    as_trained(made)
    made.model.requires_grad_(False)
    for parameter in of_role(made, "projector"):
        parameter.requires_grad_(True)


@variant("llava", "gemma3", "llama4", "florence2")
def reentrant_checkpointing_of_adapters(made: Made) -> None:
    made.model.gradient_checkpointing_enable({"use_reentrant": True})
    lora(made)
    made.model.enable_input_require_grads()


@variant("llava", "qwen3_vl", "gemma3", "mllama")
def checkpointing_of_adapters(made: Made) -> None:
    made.model.gradient_checkpointing_enable({"use_reentrant": False})
    lora(made)


@variant("llava", "qwen3_vl", "gemma3", "internvl", "gpt2")
def grown_tables(made: Made) -> None:
    """Tokens are added to the vocabulary and to the tables, and the answers use them."""
    rows = made.model.get_input_embeddings().weight.shape[0]
    made.model.resize_token_embeddings(rows + 8)
    made.batch["input_ids"][:, -3] = made.batch["labels"][:, -3] = rows + 2


@variant("llava", "qwen3_vl", "llama")
def left_in_evaluation_on_purpose(made: Made) -> None:
    """Without dropout there is nothing that training mode would change."""
    made.model.eval()


@variant("mistral", "gemma2", "gpt_oss", sliding_window=4)
def short_sliding_window(made: Made) -> None:
    """Each token sees the four before it."""


@variant("gemma3", "mistral3", text_config={"sliding_window": 4})
def short_sliding_window_of_the_text(made: Made) -> None:
    pass
