"""What of a foreign configuration is not followed: kernels, quantisers, downloads, names of other files."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmdoctor.errors import UserError

ATTENTION = ("eager", "sdpa")
EXPERTS = ("eager", "batched_mm", "grouped_mm")
_ATTENTION = re.compile(r"_*(?:attn|attention)_implementation\w*")
_EXPERTS = re.compile(r"_*(?:experts|moe)_implementation\w*")
_QUANTISERS = ("quantization_config", "compression_config")
# Each would have transformers exchange layers for those of a downloaded kernel, or read another file.
_DROPPED = {
    "use_kernels": "kernels for its layers",
    "kernel_config": "kernels for its layers",
    "kernel_mapping": "kernels for its layers",
    "fusion_config": "fused layers",
    "transformers_weights": "a file of weights",
    "configuration_files": "other configurations",
    "extra_files": "other files of weights",
    "distributed_config": "a distributed setup",
}
_PRETRAINED = ("use_pretrained_backbone", "pretrained_backbone")
# What timm's factory would download or unpickle, among the arguments that a configuration has for it.
_TIMM_ARGUMENTS = ("backbone_kwargs", "model_args")
_TIMM_LOADS = ("pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")
_TIMM_NAMES = ("backbone", "architecture")
_ELSEWHERE = re.compile(r"^[\w-]+:|^[./~]|\\")
_MOST_NAME = 80  # characters of a value that is quoted


@dataclass
class Cleaned:
    """A configuration that can be built from.

    Attributes:
        values: The values, without what is not followed.
        replaced: What was not followed, in a sentence each.
        quantised: The method with which the weights are quantised; None where they are not.
    """

    values: dict[str, Any]
    replaced: list[str] = field(default_factory=list)
    quantised: str | None = None


def cleaned(values: Mapping[str, Any], file: str, *, trusted: bool = False) -> Cleaned:
    """The values of a configuration file, at all depths without what would load or fetch anything.

    Args:
        values: As read; they are not changed.
        file: The file's name, for the sentences.
        trusted: Whether quantisers may be loaded, since the user trusts the folder's code.

    Raises:
        UserError: A backbone is named by an address.
    """
    found = Cleaned({})
    found.values = _part(values, "", file, found, trusted)
    return found


def settle(config: Any, replaced: list[str]) -> None:
    """The same for a configuration object and all within it: attention and experts are plain torch.

    For what no file says: the code of a trusted folder, and defaults of a class.
    """
    seen: set[int] = set()
    waiting = [config]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or not hasattr(part, "to_dict"):
            continue
        seen.add(id(part))
        for name, allowed in (("_attn_implementation", ATTENTION), ("_experts_implementation", EXPERTS)):
            asked = vars(part).get(f"{name}_internal")
            if asked is not None and asked not in allowed:
                replaced.append(f"'{_short(asked)}' of {type(part).__name__} was not loaded")
                setattr(part, f"{name}_internal", None)
        inner = vars(part).values()
        waiting += [each for value in inner for each in (value if isinstance(value, list) else [value])]


def _part(
    values: Mapping[str, Any], prefix: str, file: str, found: Cleaned, trusted: bool, *, whole: bool = True
) -> dict[str, Any]:
    """One object of it; `whole` where its names become attributes of a configuration."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        place = f"{prefix}{name}"
        if not isinstance(name, str):
            kept[name] = value
        elif whole and _is_method(name):
            found.replaced.append(f"{place} of {file} would hide a method and was left out")
        elif name in _DROPPED:
            if value:
                found.replaced.append(f"{place} of {file} asks for {_DROPPED[name]} and was not followed")
        elif name in _QUANTISERS and not trusted:
            if value is not None:
                found.quantised = found.quantised or _method(value)
                found.replaced.append(
                    f"the quantiser '{_method(value)}' named in {file} was not loaded; examined unquantised"
                )
        elif _ATTENTION.fullmatch(name):
            kept[name] = _allowed(value, ATTENTION, "attention kernel", file, found.replaced)
        elif _EXPERTS.fullmatch(name):
            kept[name] = _allowed(value, EXPERTS, "implementation of experts", file, found.replaced)
        elif name in _PRETRAINED:
            if value:
                found.replaced.append(f"{place} of {file} asks for a download and was not followed")
            kept[name] = False
        elif name in _TIMM_ARGUMENTS and isinstance(value, Mapping):
            kept[name] = {key: each for key, each in value.items() if key not in _TIMM_LOADS}
            if len(kept[name]) < len(value):
                found.replaced.append(f"{place} of {file} asks for weights and was not followed")
        elif isinstance(value, Mapping):
            inner = "config" in name
            kept[name] = _part(value, f"{place}.", file, found, trusted, whole=inner)
        elif isinstance(value, list):
            kept[name] = [
                _part(each, f"{place}.", file, found, trusted, whole=False)
                if isinstance(each, Mapping)
                else each
                for each in value
            ]
        else:
            if name in _TIMM_NAMES and isinstance(value, str) and _ELSEWHERE.search(value):
                raise UserError(
                    f"{file} names the {place} '{_short(value)}', which is an address and no name of a "
                    f"model; it is not followed."
                )
            kept[name] = value
    return kept


def _allowed(value: Any, allowed: tuple[str, ...], what: str, file: str, replaced: list[str]) -> Any:
    """The value where it is allowed, else None, with which transformers chooses among those itself."""
    if isinstance(value, Mapping):
        return {name: _allowed(each, allowed, what, file, replaced) for name, each in value.items()}
    if value is None or (isinstance(value, str) and value in allowed):
        return value
    replaced.append(f"{what} '{_short(value)}' named in {file} was not loaded; examined with {{chosen}}")
    return None


def chosen(replaced: list[str], config: Any) -> list[str]:
    """The sentences, with the attention that the model was really built with."""
    names = {"attention": getattr(config, "_attn_implementation", None) or "transformers' own"}
    experts = getattr(config, "_experts_implementation", None) or "transformers' own"
    return list(
        dict.fromkeys(
            text.replace("{chosen}", experts if text.startswith("impl") else names["attention"])
            for text in replaced
        )
    )


def _method(value: Any) -> str:
    method = value.get("quant_method") if isinstance(value, Mapping) else None
    return _short(method) if method else "unnamed"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _MOST_NAME else f"{text[:_MOST_NAME]}…"


def _is_method(name: str) -> bool:
    """Whether an attribute of this name would take the place of a method that every configuration has."""
    return name.startswith("__") or name in _methods()


_known: set[str] = set()


def _methods() -> set[str]:
    if not _known:
        from transformers import PreTrainedConfig

        members: dict[str, Callable[..., Any] | Any] = {}
        for base in PreTrainedConfig.__mro__:
            members.update(vars(base))
        _known.update(name for name, member in members.items() if _callable(member))
    return _known


def _callable(member: Any) -> bool:
    return callable(member) or isinstance(member, classmethod | staticmethod)
