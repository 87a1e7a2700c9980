"""A transformers checkpoint folder, with or without weights, as a target."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmdoctor.boundary import is_file, read_json
from vlmdoctor.errors import NotBuilt, UserError
from vlmdoctor.plain_text import first_line, raised, text_of
from vlmdoctor.sandbox.closed import nothing_fetched
from vlmdoctor.subject import Subject
from vlmdoctor.targets.config_values import Cleaned, chosen, cleaned, settle
from vlmdoctor.targets.default_batch import with_batch
from vlmdoctor.targets.loading import INDEX, SINGLE, loaded, quiet, weight_files
from vlmdoctor.targets.meta_target import (
    MetaTarget,
    one_size,
    package_missing,
    refuse_counts,
    refuse_sizes,
)
from vlmdoctor.targets.processor_files import image_side
from vlmdoctor.targets.target import Target

SAFE_WEIGHTS = (SINGLE, INDEX)
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_MOST_CONFIG = 8 << 20  # bytes: of one with 100,000 names of classes
# Above this share of the free memory a model is only laid out: its gradients take as much again.
MEMORY_SHARE = 0.3


def checkpoint(
    text: str,
    path: Path,
    trust_remote_code: bool,
    weightless: MetaTarget | None = None,
    makes_batch: bool = True,
    budget: float | None = None,
) -> Target:
    """The model of the folder (or config.json) at `path`; without safetensors it is initialised at random.

    Given `weightless`, it is laid out without weights, with a batch made from its configuration. What the
    configuration asks for and is not followed is listed in the fact `not_followed`.
    """
    config_file = path / "config.json" if path.is_dir() else path
    folder = config_file.parent
    values = _read(config_file)  # before anything large is imported
    with _closed(trust_remote_code):
        read = cleaned(values, config_file.name, trusted=trust_remote_code)
        target = _target(text, config_file, read, trust_remote_code, weightless)
    replaced = chosen(read.replaced, target.subject.model.config)
    if replaced:
        target = replace(target, facts={**target.facts, "not_followed": replaced})
    if weightless is not None or target.missing_batch is not None or not makes_batch:
        return target
    return with_batch(target, folder, trust_remote_code, budget)


def _closed(trusted: bool) -> AbstractContextManager[None]:
    """What a model is built in: trusted code may fetch what it needs."""
    return nullcontext() if trusted else nothing_fetched(models=True)


def _target(
    text: str, config_file: Path, read: Cleaned, trust_remote_code: bool, weightless: MetaTarget | None
) -> Target:
    """The target without a batch; laid out with one, given `weightless`."""
    folder = config_file.parent
    refuse_counts(read.values, f"the model of {config_file}")
    try:
        config = _config(config_file, read.values, trust_remote_code)
    except NotBuilt:
        refuse_sizes(read.values, f"the model of {config_file}")  # a zero is told as "integer modulo by zero"
        raise
    settle(config, read.replaced)
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
        if read.quantised is not None:
            raise UserError(
                f"the weights in {folder} are quantised ('{read.quantised}'), and quantisers are not loaded "
                f"for a folder; give --trust-remote-code if you trust it, or a function that returns the "
                f"model."
            )
        model = _loaded(model_class, config, folder, read.values, trust_remote_code)
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
    return Target(subject, text, facts)


def weight_bytes(folder: Path) -> int:
    """Bytes of the safetensors files that belong to the folder's model; 0 where there are none."""
    if not any(is_file(folder / name) for name in SAFE_WEIGHTS):
        return 0
    files = [folder / SAFE_WEIGHTS[0], *folder.glob("model-*.safetensors")]
    return max(sum(file.stat().st_size for file in files if is_file(file)), 1)


def too_large(folder: Path) -> bool:
    """Whether loading the folder's weights would leave too little memory for examining them."""
    return weight_bytes(folder) > MEMORY_SHARE * _free_memory()


def _read(config_file: Path) -> dict[str, Any]:
    if not config_file.exists() and (config_file.parent / "adapter_config.json").is_file():
        raise UserError(
            f"{config_file.parent} holds PEFT's adapters and no model; give a function that returns the "
            "model with its adapters, such as PeftModel.from_pretrained(base, folder, is_trainable=True)."
        )
    if not config_file.exists():
        raise UserError(
            f"{config_file.parent} has no {config_file.name}, so it is no transformers checkpoint."
        )
    values = read_json(config_file, _MOST_CONFIG)
    if not isinstance(values, dict):
        raise UserError(f"{config_file} holds no JSON object, so it is no model configuration.")
    return values


def configuration(config_file: Path) -> Any:
    """The configuration object of a file, settled, without a model and without the folder's code.

    Raises:
        UserError: It makes none.
    """
    with nothing_fetched():
        read = cleaned(_read(config_file), config_file.name)
        refuse_counts(read.values, f"the model of {config_file}")
        config = _config(config_file, read.values, False)
        settle(config, read.replaced)
        return config


def _config(config_file: Path, values: dict[str, Any], trust_remote_code: bool) -> Any:
    """The configuration of the values; of a trusted folder, by the code in it where there is some."""
    from transformers import AutoConfig

    try:
        kind = values.get("model_type")
        known = isinstance(kind, str) and kind in _config_classes()
        remote = values.get("auto_map")
        if isinstance(remote, dict) and "AutoConfig" in remote and (trust_remote_code or not known):
            if not trust_remote_code:
                raise UserError(_needs_trust(config_file.parent))
            return AutoConfig.from_pretrained(config_file, trust_remote_code=True)
        if not known:
            raise ValueError(f"transformers knows no model type {_quoted(kind)}")
        if kind == "mistral" and "layer_types" in values:
            kind = "ministral"  # as AutoConfig reads it
        config = _config_classes()[kind].from_dict({**values, "model_type": kind})
        config.name_or_path = str(config_file)
        return config
    except UserError:
        raise
    except Exception as error:
        raise NotBuilt(
            f"{config_file} makes no model configuration: {first_line(error, 300)}.", raised(error)
        ) from error


def _config_classes() -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING


def _quoted(kind: Any) -> str:
    return "since none is given" if kind is None else f"'{str(kind)[:80]}'"


def _model_class(config: Any, folder: Path, trust_remote_code: bool) -> Any:
    """The class that the checkpoint names, else the one for image and text, else the one for text."""
    import transformers

    named = config.architectures if isinstance(config.architectures, list) else []
    for name in named:
        if (found := _class_named(name)) is not None:
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


def _class_named(name: Any) -> Any | None:
    """The model class of transformers with this name; None for anything else that goes by the name there."""
    import transformers

    if not isinstance(name, str) or not name.isidentifier():
        return None
    # Looking up any other name would import what it needs.
    modules = getattr(transformers, "_class_to_module", None)
    if modules is not None and not str(modules.get(name)).startswith("models."):
        return None
    try:
        found = getattr(transformers, name, None)
    except Exception:  # a module that needs a package
        return None
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    return found if is_model and found.__module__.startswith("transformers.models.") else None


def _needs_trust(folder: Path) -> str:
    return f"{folder} needs code of its own to be run; give --trust-remote-code if you trust it."


def _loaded(model_class: Any, config: Any, folder: Path, values: dict[str, Any], trusted: bool) -> Any:
    """The model with its weights; laid out without any where memory could not hold it."""

    def load(**options: Any) -> Any:
        if not trusted:
            return loaded(model_class, config, folder, values, **options)
        settings = {"use_safetensors": True, "trust_remote_code": True, "local_files_only": True, **options}
        return model_class.from_pretrained(folder, config=config, **settings)

    weight_files(folder)
    laid_out = _laid_out(model_class, copy.deepcopy(config))
    if laid_out is not None and _too_much(laid_out):
        return laid_out  # a small file can belong to a configuration of any size
    attempts: tuple[dict[str, Any], ...] = ({}, {"ignore_mismatched_sizes": True})
    with quiet():
        for options in attempts:
            try:
                return load(**options)
            except ImportError as error:
                raise package_missing(model_class, error) from error
            except UserError:
                raise
            except Exception as error:
                # Weights of other sizes are left out once more: a rule reports them.
                if options or "ignore_mismatched_sizes" not in text_of(error):
                    reason = f"the weights in {folder} can't be loaded: {first_line(error, 300)}."
                    raise UserError(reason) from error
    raise AssertionError("the last attempt returns or raises")


def _laid_out(model_class: Any, config: Any) -> Any | None:
    """The model without weights; None where it can't be built so, which loading will tell."""
    import torch

    try:
        with torch.device("meta"):
            return model_class._from_config(config)
    except Exception:
        return None


def _too_much(model: Any) -> bool:
    return sum(parameter.nbytes for parameter in model.parameters()) > MEMORY_SHARE * _free_memory()


def _initialised(model_class: Any, config: Any) -> Any:
    import torch

    try:
        with torch.device("meta"):
            laid_out = model_class._from_config(config)
        if _too_much(laid_out):
            return laid_out
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return model_class._from_config(config)
    except ImportError as error:
        raise package_missing(model_class, error) from error
    except Exception as error:
        raise UserError(
            f"{model_class.__name__} can't be built from its config.json: {raised(error)}."
        ) from error


def _free_memory() -> float:
    """Bytes of memory that are free, by /proc; where there is none, without a limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return float("inf")
    available = next((line for line in lines if line.startswith("MemAvailable:")), None)
    return float("inf") if available is None else 1024.0 * int(available.split()[1])
