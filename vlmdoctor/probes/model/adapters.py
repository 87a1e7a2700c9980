"""Where low-rank adapters sit, beside how they were asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.adapters import AdaptedModule, Adapters
from vlmdoctor.knowledge.parameter_names import plain_name, role_of
from vlmdoctor.probes.checkpoint.names import innermost_model
from vlmdoctor.subject import Subject


def probe(subject: Subject, gather: Callable[[type], Any]) -> Adapters:
    """Reads PEFT's configuration and the names of the modules that it wrapped."""
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
            modules.append(AdaptedModule(name=name, role=role_of(name), asked_as=asked))
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
    try:
        head = innermost_model(module).get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return head
