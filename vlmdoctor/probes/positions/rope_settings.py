"""Rotary embeddings as the configuration sets them, for a model without weights: what turns, and how fast."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch

from vlmdoctor.dryrun.config_suspicions import rotated_half
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.rope_settings import Rope, RopeSettings
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.subject import Subject

MOST_PAIRS = 1 << 16  # in a head; more are a slip of the keys, and would take time and memory
_FREQUENCIES = re.compile(r"(?:(?P<layers>\w+)_)?(?<!original_)inv_freq")
_VISION = re.compile(r"vis|image|vit|patch")


def probe(subject: Subject, gather: Callable[[type], Any]) -> RopeSettings:
    """Computes the frequencies anew, on the CPU, by the model's own code; nothing else of it is built."""
    parameters = list(subject.model.parameters())
    if not parameters or not all(parameter.is_meta for parameter in parameters):
        raise Unavailable("the model has its tables; the rules about tables read them")
    found: dict[tuple[Any, ...], Rope] = {}
    config = getattr(subject.model, "config", None)
    for name, module in subject.model.named_modules():
        for rope in _ropes(name, module, config):
            found.setdefault((rope.path, rope.part, rope.layers, rope.rotated), rope)
    return RopeSettings(ropes=tuple(found.values()))


def _ropes(name: str, module: Any, top: Any) -> Iterator[Rope]:

    names = {
        own: match
        for own, buffer in module.named_buffers(recurse=False)
        if (match := _FREQUENCIES.fullmatch(own)) and buffer.numel() <= MOST_PAIRS
    }
    config = getattr(module, "config", None)
    if not names or config is None:
        return
    try:
        with torch.device("cpu"):
            real = type(module)(config=config)
    except Exception:  # the class may want more than its configuration: then nothing is said of it
        return
    for buffer, match in names.items():
        frequencies = getattr(real, buffer, None)
        if not isinstance(frequencies, torch.Tensor) or frequencies.ndim != 1 or not frequencies.numel():
            continue
        layers = match["layers"] or ""
        settings = _settings(config, layers)
        finite = bool(torch.isfinite(frequencies).all() and (frequencies >= 0).all())
        slow = float(frequencies[frequencies > 0].min()) if finite and bool((frequencies > 0).any()) else None
        # Height and width use the same frequencies on images.
        rotated, head = 2 * frequencies.numel(), _head_dim(config)
        if settings.get("rope_type") == "axial" and head is not None and 2 * rotated <= head:
            rotated *= 2
        sections = settings.get("mrope_section") or getattr(real, "mrope_section", None) or ()
        yield Rope(
            where=canonical_name(name),
            path=_path(config, top),
            part="vision" if _VISION.search(f"{name} {type(module).__name__}".lower()) else "text",
            layers=layers,
            kind=str(settings.get("rope_type", "default")),
            head_dim=head,
            rotated=rotated,
            theta=_number(settings.get("rope_theta", getattr(config, "rope_theta", None))),
            slowest=2 * math.pi / slow if slow else None,
            finite=finite,
            sections=tuple(sections) if isinstance(sections, list | tuple) else (),
            settings=tuple((k, v) for k, v in settings.items() if isinstance(v, int | float | str)),
            context=_size(getattr(config, "max_position_embeddings", None)),
        )


def _settings(config: Any, layers: str) -> dict[str, Any]:
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    rope = rope.get(layers, rope) if isinstance(rope, dict) else {}
    return dict(rope) if isinstance(rope, dict) else {}


def _path(config: Any, top: Any) -> str:
    name = "rope_parameters" if hasattr(config, "rope_parameters") else "rope_scaling"
    for part, value in (vars(top) if top is not None else {}).items():
        if value is config:
            return f"{part}.{name}"
    return name


def _head_dim(config: Any) -> int | None:
    values = config.to_dict() if hasattr(config, "to_dict") else {}
    half = rotated_half({k: v for k, v in values.items() if v is not None})
    return None if half is None else 2 * half


def _size(value: Any) -> int | None:
    return value if type(value) is int and value > 0 else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
