"""A model with a folder's weights, of files that were looked at, and with nothing else that lies there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmdoctor.boundary import is_file, read_json
from vlmdoctor.errors import UserError
from vlmdoctor.plain_text import first_line
from vlmdoctor.sandbox.weight_files import refuse_header, shards

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
_MOST_SETTINGS = 1 << 20  # bytes
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of the folder's model; none where it has neither the file nor an index.

    Raises:
        UserError: The index names what is no safetensors file of the folder, or a header is none.
    """
    if is_file(folder / SINGLE):
        found = [folder / SINGLE]
    elif is_file(folder / INDEX):
        found = shards(folder / INDEX)
    else:
        return []
    for file in found:
        refuse_header(file)
    return found


def loaded(model_class: Any, config: Any, folder: Path, values: dict[str, Any], **options: Any) -> Any:
    """The model with the weights in `weight_files`, as `from_pretrained` on the folder would load it.

    The folder itself is not given to transformers: beside the weights it would take adapters, distributed
    checkpoints, code for generating, and files that the configuration names.

    Args:
        model_class: A class of transformers.
        config: The configuration, settled.
        folder: Where the weights lie.
        values: The content of config.json, which may hold what belongs into generation_config.json.
        options: For `from_pretrained`.
    """
    from safetensors import safe_open

    with contextlib.ExitStack() as opened:
        pieces: dict[str, Any] = {}
        # Some classes keep a part in a file of its own; the names are the class's.
        named = [folder / name for name in getattr(type(config), "extra_files", ())]
        more = [path for path in named if is_file(path)]
        for path in more:
            refuse_header(path)
        for path in (*weight_files(folder), *more):
            file = opened.enter_context(safe_open(str(path), framework="pt"))
            pieces.update((name, file.get_slice(name)) for name in file.keys())  # noqa: SIM118
        model = model_class.from_pretrained(
            None,
            config=config,
            state_dict=pieces,
            dtype=getattr(config, "dtype", None) or _dtype(pieces),
            local_files_only=True,
            **options,
        )
    if model.can_generate() and hasattr(model, "adjust_generation_fn"):
        model.generation_config = _generation(folder, values)
    model.config.name_or_path = model.name_or_path = str(folder)
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' bars and tables: what they say is found and reported by rules."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _dtype(pieces: dict[str, Any]) -> Any:
    """That of the first tensor of floats, as transformers has it where the configuration says nothing."""
    import torch

    kinds = (_FLOATS.get(str(piece.get_dtype())) for piece in pieces.values())
    return getattr(torch, next((kind for kind in kinds if kind is not None), "float32"))


def _generation(folder: Path, values: dict[str, Any]) -> Any:
    from transformers import GenerationConfig

    file = folder / "generation_config.json"
    read = read_json(file, _MOST_SETTINGS) if is_file(file) else None
    named = read if isinstance(read, dict) else values
    # A name of a method would take the method's place.
    kept = {
        name: value
        for name, value in named.items()
        if not name.startswith("__") and not callable(getattr(GenerationConfig, name, None))
    }
    try:
        if named is values:
            return GenerationConfig.from_model_config(kept)
        made = GenerationConfig.from_dict(kept)
        made._original_object_hash = hash(made)  # by which transformers sees later changes
        return made
    except Exception as error:
        raise UserError(f"{file} makes no generation configuration: {first_line(error, 300)}.") from error
