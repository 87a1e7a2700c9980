"""What is examined: a model with whatever else the user has, under canonical names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vlmdoctor.knowledge.named_parts import current


@dataclass
class Subject:
    """A model and what it is trained with; everything but the model may be missing.

    Attributes:
        model: A module, or a callable that builds one.
        batch: The mapping or tuple that the model is called with.
        loss_fn: `loss_fn(model, batch) -> Tensor`; by default the output's `.loss`.
        optimizer: The optimizer, or several.
        lr_scheduler: The learning-rate scheduler.
        tokenizer: The tokenizer.
        processor: The processor.
        train_dataset: The training data.
        data_collator: What makes batches of it.
        checkpoint: A path, or a state dict, that the weights were meant to come from.
        trainable: Patterns of the names of the parameters that are meant to learn: a plain text is
            searched for among the name's dotted parts, `*` and `?` are wild cards.
        training_args: A mapping or `TrainingArguments`.
        contract: What the run is meant to be, as `[tool.vlmdoctor.contract]` says it.
        roles: Which part is which, where names don't say it: `vision`, `projector`, `language` or `head` to
            patterns of names as in `trainable`, such as `{"projector": "mlp"}`; measured where not given.
        image_token_id: The id that stands for one image feature in the text; measured where it is not given.
        labels_name: What the batch calls its labels; found by name and content where it is not given.
    """

    model: Any
    batch: Any = None
    loss_fn: Callable[[Any, Any], Any] | None = None
    optimizer: Any = None
    lr_scheduler: Any = None
    tokenizer: Any = None
    processor: Any = None
    train_dataset: Any = None
    data_collator: Any = None
    checkpoint: Any = None
    trainable: Iterable[str] | str | None = None
    training_args: Any = None
    contract: Mapping[str, str] | None = None
    roles: Mapping[str, Any] | None = None
    image_token_id: int | None = None
    labels_name: str | None = None


def compile_patterns(patterns: Iterable[str] | str) -> dict[str, re.Pattern[str]]:
    """Patterns of parameter names, compiled; `search` them in canonical names.

    A plain text matches whole dotted parts (`lm` matches `lm.layers.0.weight` and not `lm_head.weight`).
    """
    if isinstance(patterns, str):
        patterns = [patterns]
    compiled = {}
    for text in patterns:
        body = "".join({"*": ".*", "?": "."}.get(char, re.escape(char)) for char in text)
        compiled[text] = re.compile(rf"(?:^|\.){body}(?:\.|$)")
    return compiled


def optimizers(optimizer: Any) -> list[Any]:
    """The optimizers in what the user gave: none, one, a sequence, or a wrapper around one."""
    if optimizer is None:
        return []
    if isinstance(optimizer, Mapping):
        return list(optimizer.values())
    if isinstance(optimizer, list | tuple):
        return list(optimizer)
    return [optimizer]


def vocab_size(model: Any) -> int | None:
    """Rows of the output head: its own, the configuration's, or as measured; None where unknown."""
    head = None
    try:
        head = model.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        head = getattr(model, "lm_head", None)
    weight = getattr(head, "weight", None)
    if weight is not None and getattr(weight, "ndim", 0) == 2:
        return int(weight.shape[0])
    config = getattr(model, "config", None)
    text_config = getattr(config, "text_config", None) or config
    size = getattr(text_config, "vocab_size", None)
    return int(size) if isinstance(size, int) else current().head_rows
