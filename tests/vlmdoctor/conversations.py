"""Tokenizers and conversations in the manner of well-known model families, built in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from vlmdoctor.evidence.data import Data, Row
from vlmdoctor.probes.data.read import read
from vlmdoctor.subject import Subject

IGNORED = -100
TURNS = (("what is on the left?", "a small red cat"), ("and its colour?", "red"))
CORPUS = [text for turn in TURNS for text in turn] + [
    "USER: hello ASSISTANT: hi",
    "user assistant model system\n",
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PARTS = (
    "{% macro text(c) %}{% if c is string %}{{ c }}{% else %}{% for p in c %}{% if p['type'] == 'image' %}"
    "<image>{% else %}{{ p['text'] }}{% endif %}{% endfor %}{% endif %}{% endmacro %}"
)
TEMPLATES = {
    "qwen2_vl": CHATML,
    "llava": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }} "
        "{% elif m['role'] == 'user' %}USER: {{ m['content'] }} "
        "{% else %}ASSISTANT: {{ m['content'] }}</s>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    "gemma3": (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}<bos>"
        "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else 'user' }}\n"
        "{{ m['content'] }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "mllama": (
        "<|begin_of_text|>{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "idefics3": (
        PARTS + "<|im_start|>{% for m in messages %}{{ m['role'] | capitalize }}:"
        "{% if m['content'] is not string and m['content'][0]['type'] == 'text' %} {% endif %}"
        "{{ text(m['content']) }}<end_of_utterance>\n{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    "mistral": (
        "<s>{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
        "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
    ),
    "glm": (
        "[gMASK]<sop>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
}
SPECIAL = {
    "qwen2_vl": ["<|im_start|>", "<|im_end|>", "<|vision_start|>"],
    "llava": ["<s>", "</s>"],
    "gemma3": ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"],
    "mllama": ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "idefics3": ["<|im_start|>", "<end_of_utterance>"],
    "mistral": ["<s>", "</s>", "[INST]", "[/INST]"],
    "glm": ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|endoftext|>"],
}
STOPS = {
    "qwen2_vl": "<|im_end|>",
    "llava": "</s>",
    "gemma3": "<end_of_turn>",
    "mllama": "<|eot_id|>",
    "idefics3": "<end_of_utterance>",
    "mistral": "</s>",
    "glm": "<|endoftext|>",
}
SENTENCEPIECE = ("llava", "mistral", "gemma3")
FAMILIES = tuple(TEMPLATES)


def tokenizer(family: str, **changes: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of a few hundred entries: byte-level BPE, or pieces with `▁` where the family has them."""
    special = ["<pad>", "<image>", *SPECIAL[family]]
    if family in SENTENCEPIECE:
        backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=False))
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = [chr(i) for i in range(32, 127)] + ["\n"]
        special.append("<unk>")
    else:
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    options = {"pad_token": "<pad>", "eos_token": STOPS[family], "chat_template": TEMPLATES[family]} | changes
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **options)
    made.image_token = "<image>"
    return made


@dataclass
class Made:
    """A small batch of a family, made as a careful collator makes it.

    Attributes:
        family: Whose manner it is in.
        model: Nothing but a configuration with the sizes of tables.
        tokenizer: The tokenizer.
        batch: Two rows, the second one shorter and padded.
        processor: What names the image's normalisation.
    """

    family: str
    model: Any
    tokenizer: Any
    batch: dict[str, Any]
    processor: Any = None
    more: dict[str, Any] = field(default_factory=dict)

    def data(self) -> Data:
        return read(self.subject())

    def subject(self) -> Subject:
        return Subject(
            self.model, batch=self.batch, tokenizer=self.tokenizer, processor=self.processor, **self.more
        )


class Model(torch.nn.Module):
    """A model of which only the outside is looked at."""

    def __init__(self, config: Any, rows: int, extra: int = 0) -> None:
        super().__init__()
        self.config = config
        self.embed = torch.nn.Embedding(rows + extra, 2)
        self.lm_head = torch.nn.Linear(2, rows, bias=False)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embed

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.lm_head

    def forward(self, input_ids: Any = None, **inputs: Any) -> None: ...


def made(
    family: str, image_tokens: int = 4, turns: Sequence[tuple[str, str]] = TURNS, **changes: Any
) -> Made:
    """Two rows of a family: a conversation with an image, and a shorter one about another image."""
    words = tokenizer(family, **changes)
    image, stop = words.convert_tokens_to_ids("<image>"), words.convert_tokens_to_ids(STOPS[family])
    ids, labels = [], []
    for conversation in (turns, turns[:1]):
        row_ids, row_labels = encode(words, family, conversation, image_tokens)
        ids.append(row_ids)
        labels.append(row_labels)
    batch = padded(ids, labels, words.pad_token_id)
    batch["pixel_values"] = pixels(len(ids))
    text = SimpleNamespace(vocab_size=len(words), max_position_embeddings=512)
    config = SimpleNamespace(
        model_type="qwen2_vl" if family == "glm" else family,
        image_token_id=image,
        text_config=text,
        eos_token_id=stop,
        vision_config=SimpleNamespace(image_size=8, patch_size=4, model_type="clip_vision_model"),
        vision_feature_select_strategy="default",
        mm_tokens_per_image=image_tokens,
    )
    if family == "gemma3":
        batch["token_type_ids"] = (batch["input_ids"] == image).long()
    if family == "mllama":
        batch["pixel_values"] = batch["pixel_values"][:, None, None]
    if family == "idefics3":
        batch["pixel_values"] = batch["pixel_values"][:, None]
    if family == "qwen2_vl":
        config.vision_config = SimpleNamespace(patch_size=4, spatial_merge_size=2)
        batch["pixel_values"] = batch["pixel_values"].new_zeros(32, 3 * 2 * 4 * 4).normal_()
        batch["image_grid_thw"] = torch.tensor([[1, 4, 4], [1, 4, 4]])
    model = Model(config, len(words), extra=8 if family == "mllama" else 0)
    images = SimpleNamespace(image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return Made(family, model, words, batch, SimpleNamespace(image_processor=images, image_token="<image>"))


def encode(
    words: Any, family: str, conversation: Sequence[tuple[str, str]], image_tokens: int
) -> tuple[list[int], list[int]]:
    """Ids and labels of a conversation; answers and the stop token after each are supervised."""
    placeholder = "<image>" * image_tokens
    messages = []
    for number, (question, answer) in enumerate(conversation):
        messages.append({"role": "user", "content": (placeholder if number == 0 else "") + question})
        messages.append({"role": "assistant", "content": answer})
    text = words.apply_chat_template(messages, tokenize=False)
    encoded = words(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = encoded["input_ids"]
    spans, position = [], 0
    for _, answer in conversation:
        question = text.index(_, position)
        start = text.index(answer, question + len(_))
        stop = STOPS[family]
        end = start + len(answer) + (len(stop) if text.startswith(stop, start + len(answer)) else 0)
        spans.append((start, end))
        position = end
    if family == "glm":
        # Its end of turn is the next one's beginning; the last answer gets the end of text.
        ids = [*ids, words.eos_token_id]
        offsets = [*encoded["offset_mapping"], (len(text) - 1, len(text))]
    else:
        offsets = encoded["offset_mapping"]
    labels = [
        token if any(start <= place[1] - 1 < end for start, end in spans) else IGNORED
        for token, place in zip(ids, offsets, strict=True)
    ]
    return ids, labels


def padded(ids: Sequence[list[int]], labels: Sequence[list[int]], padding: int) -> dict[str, torch.Tensor]:
    length = max(map(len, ids))
    fill: Callable[[list[int], int], list[int]] = lambda row, value: row + [value] * (length - len(row))  # noqa: E731
    return {
        "input_ids": torch.tensor([fill(row, padding) for row in ids]),
        "labels": torch.tensor([fill(row, IGNORED) for row in labels]),
        "attention_mask": torch.tensor([fill([1] * len(row), 0) for row in ids]),
    }


def pixels(images: int) -> torch.Tensor:
    """Random 8-bit images [N, 3, 8, 8], rescaled and normalised with 0.5 and 0.5."""
    raw = torch.randint(0, 256, (images, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    return (raw.float() / 255 - 0.5) / 0.5


def text_of(row: Row, words: Any, role: str) -> str:
    return words.decode([i for i, own in zip(row.ids, row.roles, strict=True) if own == role])
