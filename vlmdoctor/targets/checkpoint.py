"""A transformers checkpoint folder, with or without weights, as a target."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmdoctor.errors import NotBuilt, UserError
from vlmdoctor.subject import Subject
from vlmdoctor.target import Target
from vlmdoctor.targets.made_batch import with_batch
from vlmdoctor.targets.processor_files import image_side
from vlmdoctor.targets.weightless import Weightless, one_size, package_missing, refuse_sizes

SAFE_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
MOST_TEXT = 300  # of an exception: some list every model type that there is
# Above this share of the free memory a model is only laid out: its gradients take as much again.
MEMORY_SHARE = 0.3


def checkpoint(
    text: str,
    path: Path,
    trust_remote_code: bool,
    weightless: Weightless | None = None,
    makes_batch: bool = True,
) -> Target:
    """The model of the folder (or config.json) at `path`; without safetensors it is initialised at random.

    Given `weightless`, it is laid out without weights, with a batch made from its configuration.
    """
    config_file = path / "config.json" if path.is_dir() else path
    values = _read(config_file)
    folder = config_file.parent
    try:
        config = _config(config_file, trust_remote_code)
    except NotBuilt:
        refuse_sizes(values, f"the model of {config_file}")  # a zero is told as "integer modulo by zero"
        raise
    model_class = _model_class(config, folder, trust_remote_code)
    facts: dict[str, Any] = {"model_class": model_class.__name__, "model_type": config.model_type}
    if weightless is not None:
        found = image_side(folder) if one_size(config) else None
        if found is not None:
            facts["images"] = f"{found[0]} pixels wide and high, as {found[1]} says"
            weightless = replace(weightless, image_size=found[0])
        else:
            facts["images"] = "of the size that the configuration suggests"
        target = weightless.target(text, model_class, config, facts)
        # Names and shapes are compared without values.
        target.subject.checkpoint = folder if weight_bytes(folder) else None
        return target
    if weight_bytes(folder):
        facts["weights"] = "safetensors"
        model = _loaded(model_class, folder, trust_remote_code)
    else:
        pickled = next((name for name in PICKLES if (folder / name).is_file()), None)
        facts["weights"] = f"random; {pickled} is a pickle and was not loaded" if pickled else "random"
        model = _initialised(model_class, config)
    if any(parameter.is_meta for parameter in model.parameters()):
        facts["weights"] = "none: laid out on the meta device, too large for this machine's memory"
        return Target(
            Subject(model), text, facts, missing_batch="the model is too large for this machine's memory"
        )
    subject = Subject(model, checkpoint=folder if facts["weights"] == "safetensors" else None)
    target = Target(subject, text, facts)
    return with_batch(target, folder, trust_remote_code) if makes_batch else target


def weight_bytes(folder: Path) -> int:
    """Bytes of the safetensors files that belong to the folder's model; 0 where there are none."""
    if not any((folder / name).is_file() for name in SAFE_WEIGHTS):
        return 0
    files = [folder / SAFE_WEIGHTS[0], *folder.glob("model-*.safetensors")]
    return max(sum(file.stat().st_size for file in files if file.is_file()), 1)


def too_large(folder: Path) -> bool:
    """Whether loading the folder's weights would leave too little memory for examining them."""
    return weight_bytes(folder) > MEMORY_SHARE * _free_memory()


def _read(config_file: Path) -> dict[str, Any]:
    if not config_file.is_file() and (config_file.parent / "adapter_config.json").is_file():
        raise UserError(
            f"{config_file.parent} holds PEFT's adapters and no model; give a function that returns the "
            "model with its adapters, such as PeftModel.from_pretrained(base, folder, is_trainable=True)."
        )
    if not config_file.is_file():
        raise UserError(
            f"{config_file.parent} has no {config_file.name}, so it is no transformers checkpoint."
        )
    try:
        values = json.loads(config_file.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{config_file} can't be read as JSON: {error}.") from error
    if not isinstance(values, dict):
        raise UserError(f"{config_file} holds no JSON object, so it is no model configuration.")
    return values


def _config(config_file: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(config_file, trust_remote_code=trust_remote_code)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise UserError(_needs_trust(config_file.parent)) from error
        raised = first_line(error)
        raise NotBuilt(
            f"{config_file} makes no model configuration: {raised}.", f"{type(error).__name__}: {raised}"
        ) from error


def _model_class(config: Any, folder: Path, trust_remote_code: bool) -> Any:
    """The class that the checkpoint names, else the one for image and text, else the one for text."""
    import transformers

    named = config.architectures if isinstance(config.architectures, list) else []
    for name in named:
        found = getattr(transformers, name, None) if isinstance(name, str) else None
        if found is not None:
            return found
    auto_classes = (transformers.AutoModelForImageTextToText, transformers.AutoModelForCausalLM)
    for auto_class in auto_classes:
        if type(config) in auto_class._model_mapping:
            found = auto_class._model_mapping[type(config)]
            return found[0] if isinstance(found, tuple | list) else found
    remote = getattr(config, "auto_map", None) or {}
    for auto_class in (*auto_classes, transformers.AutoModel):
        if auto_class.__name__ in remote:
            if not trust_remote_code:
                raise UserError(_needs_trust(folder))
            from transformers.dynamic_module_utils import get_class_from_dynamic_module

            return get_class_from_dynamic_module(remote[auto_class.__name__], str(folder))
    raise UserError(
        f"transformers {transformers.__version__} knows no model with a language-modelling loss for the "
        f"model type '{config.model_type}' of {folder}."
    )


def _needs_trust(folder: Path) -> str:
    return f"{folder} needs code of its own to be run; give --trust-remote-code if you trust it."


def _loaded(model_class: Any, folder: Path, trust_remote_code: bool) -> Any:
    def load(**options: Any) -> Any:
        return model_class.from_pretrained(
            folder,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            **options,
        )

    with _quiet():
        try:
            return load()
        except ImportError as error:
            raise package_missing(model_class, error) from error
        except Exception as error:
            if "ignore_mismatched_sizes" in str(error):
                return load(ignore_mismatched_sizes=True)  # which do not fit, a rule will tell
            raise UserError(f"the weights in {folder} can't be loaded: {first_line(error)}.") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' bars and tables: what they say is found and told by rules."""
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


def _initialised(model_class: Any, config: Any) -> Any:
    import torch

    try:
        with torch.device("meta"):
            laid_out = model_class._from_config(config)
        if sum(parameter.nbytes for parameter in laid_out.parameters()) > MEMORY_SHARE * _free_memory():
            return laid_out
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return model_class._from_config(config)
    except ImportError as error:
        raise package_missing(model_class, error) from error
    except Exception as error:
        raise UserError(
            f"{model_class.__name__} can't be built from its config.json: "
            f"{type(error).__name__}: {first_line(error)}."
        ) from error


def _free_memory() -> float:
    """Bytes of memory that are free, by /proc; where there is none, without a limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("inf")
    available = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return float("inf") if available is None else 1024.0 * int(available.split()[1])


def first_line(error: BaseException) -> str:
    """What it says, in a line; where validation of transformers wraps the reason, both."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    if len(lines) > 1 and text.endswith(":"):
        text = f"{text} {lines[1]}"
    return (text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}…").rstrip(".")
