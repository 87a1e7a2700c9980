"""Making a model and its processor from a preset, overrides and checkpoints."""

from __future__ import annotations

import ast
import difflib
import inspect
import types
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from minivlm import vision
from minivlm.config import MiniVLMConfig
from minivlm.errors import UserError, reason_of
from minivlm.model import MiniVLMForConditionalGeneration
from minivlm.presets import preset
from minivlm.processor import MiniVLMProcessor, processor_for
from minivlm.tokenizer import bundled_tokenizer, load_tokenizer

ROPE = "rope_parameters"


def build(
    size: str | MiniVLMConfig = "tiny",
    overrides: Mapping[str, Any] | None = None,
    *,
    vision_from: str | None = None,
    tokenizer: str | None = None,
    seed: int | None = None,
) -> tuple[MiniVLMForConditionalGeneration, MiniVLMProcessor]:
    """A model with fresh weights and the processor that goes with it.

    Args:
        size: A preset's name, or a configuration.
        overrides: Fields of the configuration to change; texts are read as the field's type.
        vision_from: A CLIP or SigLIP checkpoint whose weights and sizes the vision encoder takes.
        tokenizer: A folder or hub name; by default the bundled tokenizer.
        seed: Seed of the weights; the global random state is left as it was. None draws from it.

    Raises:
        UserError: Something named can't be used; the message says what.
    """
    fields = dict(preset(size).model) if isinstance(size, str) else size.to_dict()
    if vision_from is not None:
        fields.update(vision.library_settings(vision_from))
    fields = with_overrides(fields, overrides or {})
    for name in overrides or {}:
        if name.endswith("_token_id"):
            raise UserError(f"{name} follows from the tokenizer and can't be set.")
    words = load_tokenizer(tokenizer) if tokenizer else bundled_tokenizer()
    fields.update(token_fields(words, fields["vocab_size"], "vocab_size" in (overrides or {})))
    config = configuration(fields)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = MiniVLMForConditionalGeneration(config)
    if vision_from is not None:
        vision.load_weights(model.model.vision_encoder, vision_from)  # type: ignore[arg-type]
    return model, processor_for(config, words)


def configuration(fields: Mapping[str, Any]) -> MiniVLMConfig:
    """A configuration of these fields; raises `UserError` for sizes that don't fit together."""
    try:
        return MiniVLMConfig(**fields)
    except Exception as error:
        # `@strict` wraps what a validator raises, be it ValueError or KeyError, in an error of its own.
        cause = error.__cause__ or error
        reason = str(cause.args[0] if cause.args else cause).strip().splitlines()[-1].strip()
        raise UserError(f"the model can't be built: {reason}.") from error


def token_fields(tokenizer: Any, rows: int, fixed: bool) -> dict[str, Any]:
    """The fields of the configuration that follow from the tokenizer; more rows where it needs them.

    Raises:
        UserError: `rows` were asked for and are too few.
    """
    if len(tokenizer) > rows and fixed:
        raise UserError(f"vocab_size {rows} is too small for a tokenizer of {len(tokenizer)} entries.")
    return {
        "vocab_size": max(rows, len(tokenizer)),
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "image_token_id": tokenizer.convert_tokens_to_ids("<image>"),
    }


def with_overrides(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`fields` with the user's changes; `rope_parameters.NAME` changes one entry of that mapping.

    Raises:
        UserError: There is no such field, or the value is of another type.
    """
    changed = dict(fields)
    for name, value in overrides.items():
        field, dot, entry = name.partition(".")
        if dot and field == ROPE:
            changed[ROPE] = {**(changed.get(ROPE) or {}), entry: read_literal(value)}
        else:
            changed[name] = read_field(name, value)
    return changed


def read_field(name: str, value: Any) -> Any:
    """`value` as the type of the configuration's field `name`.

    Raises:
        UserError: There is no such field, or the value is of another type.
    """
    kinds = inspect.get_annotations(MiniVLMConfig, eval_str=True)
    own = [field for field in MiniVLMConfig.__annotations__ if field != "model_type"]
    if name not in own:
        entries = [f"{ROPE}.{entry}" for entry in ("rope_theta", "rope_type", "factor")]
        inside = [entry for entry in entries if entry.endswith(f".{name}")]
        near = inside or difflib.get_close_matches(name, [*own, *entries], n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it is one of {', '.join(own)}."
        raise UserError(f"the model has no field '{name}'; {hint}")
    if not isinstance(value, str):
        return value
    kind = kinds[name]
    choices = set(typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,))
    if str in choices:
        return value
    parsed = read_literal(value)
    if float in choices and type(parsed) is int:
        parsed = float(parsed)
    if not any(type(parsed) is (typing.get_origin(choice) or choice) for choice in choices):
        wanted = " or ".join(sorted(getattr(c, "__name__", str(c)) for c in choices)).replace(
            "NoneType", "none"
        )
        raise UserError(f"{name} is '{value}'; it must be of type {wanted}.")
    return parsed


def read_literal(value: Any) -> Any:
    """A number, truth value, none, list or mapping written as text; any other text stays as it is."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value.lower(), value))
    except (ValueError, SyntaxError):
        return value


def load(folder: str | Path) -> tuple[MiniVLMForConditionalGeneration, MiniVLMProcessor]:
    """The model and processor of a checkpoint folder.

    Raises:
        UserError: There is no checkpoint of minivlm, or it is broken or incomplete.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise UserError(f"{path} holds no minivlm checkpoint (it has no config.json).")
    try:
        with no_progress_bars():
            model, report = MiniVLMForConditionalGeneration.from_pretrained(path, output_loading_info=True)
        processor = MiniVLMProcessor.from_pretrained(path)
    except Exception as error:
        # Broken files raise anything from KeyError to safetensors' own errors.
        reason = reason_of(error)
        raise UserError(f"the checkpoint {path} can't be read: {reason}") from error
    for kind in ("missing_keys", "mismatched_keys"):
        if report[kind]:
            first = min(map(str, report[kind]))
            raise UserError(f"the checkpoint {path} is incomplete: {kind.replace('_', ' ')} such as {first}.")
    return model, processor


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keeps transformers' bars out of the log lines."""
    from transformers.utils import logging as library_logging

    shown = library_logging.is_progress_bar_enabled()
    library_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            library_logging.enable_progress_bar()
