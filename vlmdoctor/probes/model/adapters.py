"""Where low-rank adapters sit, beside how they were asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable

if TYPE_CHECKING:
    from vlmdoctor.subject import Subject

DEPTH = "static"


@dataclass(frozen=True)
class AdaptedModule:
    """One module with an adapter.

    Attributes:
        name: Canonical name.
        role: `vision`, `projector`, `language`, `head` or `other`.
        asked_as: The entry of `target_modules` that it ends with; "" where it was asked for otherwise.
    """

    name: str
    role: str
    asked_as: str = ""


@dataclass(frozen=True)
class Adapters:
    """The adapters of one PEFT model.

    Attributes:
        modules: Those with an adapter.
        target_modules: The names asked for; empty where a pattern or nothing was given.
        all_linear: Whether no linear layer but the head was left out, as with `all-linear`.
        excludes: Whether `exclude_modules` was given.
        layers_to_transform: The numbers of layers asked for; empty for all.
        layers_pattern: The name of the stack that they are numbered in; "" where none was given.
        new_rows_trained: Whether rows of the embedding learn: through adapters, `trainable_token_indices`
            or `modules_to_save`.
        merged: How many of the modules run with their adapter added into the base weight.
        scaling: The largest factor by which a module's adapter is multiplied; None where unknown.
        dropout: The share of an adapter's inputs that is dropped, by its configuration.
    """

    modules: tuple[AdaptedModule, ...]
    target_modules: tuple[str, ...] = ()
    all_linear: bool = False
    excludes: bool = False
    layers_to_transform: tuple[int, ...] = ()
    layers_pattern: str = ""
    new_rows_trained: bool = False
    merged: int = 0
    scaling: float | None = None
    dropout: float = 0.0


def probe(subject: Subject, gather: Callable[[type], Any]) -> Adapters:
    """Reads PEFT's configuration and the names of the modules that it wrapped."""
    from vlmdoctor.evidence.checkpoint_names import plain_name
    from vlmdoctor.subject import role_of

    wrapped = next((m for m in subject.model.modules() if isinstance(_configs(m), dict)), None)
    if wrapped is None:
        raise Unavailable("the model has no adapters")
    configs = [c for c in _configs(wrapped).values() if getattr(c, "target_modules", None) is not None]
    if len(configs) != 1:
        raise Unavailable("the model has several adapters, or none with target_modules")
    config = configs[0]
    targets = config.target_modules
    names = () if isinstance(targets, str) else tuple(sorted(targets))
    modules, linear_left = [], 0
    head = _head(wrapped)
    for raw_name, module in subject.model.named_modules():
        name = plain_name(f"{raw_name}.weight").removesuffix(".weight")
        if hasattr(module, "lora_A") or hasattr(module, "adapter_layer_names"):
            asked = next((text for text in names if name == text or name.endswith(f".{text}")), "")
            modules.append(AdaptedModule(name, role_of(name), asked))
        elif type(module).__name__ in ("Linear", "Conv1D", "Linear4bit", "Linear8bitLt"):
            inside = any(part in raw_name for part in (".lora_", ".base_layer", ".original_module"))
            linear_left += not inside and module is not head
    layers = getattr(config, "layers_to_transform", None)
    pattern = getattr(config, "layers_pattern", None) or ()
    rows = getattr(config, "trainable_token_indices", None) or getattr(config, "modules_to_save", None)
    return Adapters(
        modules=tuple(modules),
        target_modules=names,
        all_linear=not linear_left,
        excludes=bool(getattr(config, "exclude_modules", None)),
        layers_to_transform=tuple([layers] if isinstance(layers, int) else layers or ()),
        layers_pattern=pattern if isinstance(pattern, str) else ",".join(pattern),
        scaling=max(_scalings(subject.model), default=None),
        dropout=float(getattr(config, "lora_dropout", 0.0) or 0.0),
        merged=sum(bool(getattr(m, "merged_adapters", None)) for m in subject.model.modules()),
        new_rows_trained=bool(rows) or any("embed" in m.name for m in modules),
    )


def _scalings(model: Any) -> list[float]:
    given = [
        module.scaling for module in model.modules() if isinstance(getattr(module, "scaling", None), dict)
    ]
    return [float(value) for scaling in given for value in scaling.values() if isinstance(value, int | float)]


def _configs(module: Any) -> Any:
    return vars(module).get("peft_config")


def _head(module: Any) -> Any:
    from vlmdoctor.evidence.checkpoint_names import innermost_model

    try:
        head = innermost_model(module).get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return head
