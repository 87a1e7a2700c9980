"""A configuration whose model fails, tried again with one change at a time."""

from __future__ import annotations

import copy
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmdoctor.dryrun.config_suspicions import ROPES, Suspicion, suspicions
from vlmdoctor.errors import Unavailable, UserError
from vlmdoctor.evidence.contradictions import Contradiction, Contradictions

MOST_TRIES, MOST_SECONDS = 6, 60.0
SAME = {"image_token_index": "image_token_id", "image_token_id": "image_token_index"}


def contradictions(
    written: Mapping[str, Any],
    failed: str,
    runs: Callable[[str], bool],
    *,
    config: Any = None,
    tokens: int | None = None,
) -> Contradictions:
    """The one change after which the model runs, if there is one among what looks wrong.

    Args:
        written: What config.json says.
        failed: What building or running the model raised, in words.
        runs: Whether the model of the folder with this name runs.
        config: The configuration as transformers read it; None where it refused to.
        tokens: Tokens in a sample of the batch.
    """
    if written.get("auto_map"):
        return Contradictions()
    values = config.to_dict() if config is not None else with_defaults(written)
    suspects = list(itertools.islice(suspicions(values, tokens), MOST_TRIES))
    tries: list[tuple[Suspicion, ...]] = [(one,) for one in suspects]
    if len(suspects) > 1:
        tries.append(tuple(suspects))  # several faults at once
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for together in tries:
            if time.monotonic() - started > MOST_SECONDS:
                break
            changed = _changed(written, {path: v for one in together for path, v in one.change.items()})
            if changed is None:
                continue
            (Path(folder) / "config.json").write_text(json.dumps(changed), encoding="utf-8")
            try:
                if not runs(folder):
                    continue
            except (UserError, Unavailable):
                continue
            built = config is not None
            return Contradictions(found=tuple(_told(one, written, failed, built) for one in together))
    return Contradictions()


def _told(suspicion: Suspicion, written: Mapping[str, Any], failed: str, built: bool) -> Contradiction:
    message = suspicion.message
    names = {path: as_written(path, written) for path in (*suspicion.fields, *suspicion.change)}
    for path, name in sorted(names.items(), key=lambda pair: -len(pair[0])):
        if path != name:
            message = message.replace(path, name)
    return Contradiction(
        message=message,
        fields={names[path]: value for path, value in suspicion.fields.items()},
        change={names[path]: value for path, value in suspicion.change.items()},
        failed=failed,
        built=built,
    )


def as_written(path: str, written: Mapping[str, Any]) -> str:
    """`path` as config.json spells it: text fields may stand at the top, rotary ones under `rope_scaling`."""
    parts = path.split(".")
    if parts[0] == "text_config" and not isinstance(written.get("text_config"), Mapping):
        top = parts[1:]
        if top and (top[0] in written or (top[0] in ROPES and "rope_scaling" in written)):
            parts = top
    place: Any = written
    for index, part in enumerate(parts):
        if not isinstance(place, Mapping):
            break
        if part == "rope_parameters" and part not in place and isinstance(place.get("rope_scaling"), Mapping):
            parts[index] = part = "rope_scaling"
        if part in SAME and part not in place and SAME[part] in place:
            parts[index] = part = SAME[part]
        place = place.get(part)
    return ".".join(parts)


def _changed(written: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any] | None:
    changed = copy.deepcopy(dict(written))
    for path, value in change.items():
        *way, last = as_written(path, written).split(".")
        place: Any = changed
        for part in way:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                return None
        place[last] = value
    return changed


def with_defaults(written: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json says over the defaults of its model type, without asking the class to agree."""
    from transformers import CONFIG_MAPPING

    known = _defaults(CONFIG_MAPPING, written.get("model_type"))
    return _over(known, written, CONFIG_MAPPING)


def _defaults(mapping: Any, model_type: Any) -> dict[str, Any]:
    try:
        return dict(mapping[model_type]().to_dict())
    except Exception:  # whatever a class of transformers raises: then there are no defaults
        return {}


def _over(known: dict[str, Any], written: Mapping[str, Any], mapping: Any) -> dict[str, Any]:
    merged = {name: value for name, value in known.items() if name not in _reckoned(known, written)}
    for name, value in written.items():
        below = known.get(name)
        if isinstance(value, Mapping) and name not in ROPES:
            if value.get("model_type") and (
                not isinstance(below, dict) or below.get("model_type") != value["model_type"]
            ):
                below = _defaults(mapping, value["model_type"])
            merged[name] = _over(below if isinstance(below, dict) else {}, value, mapping)
        else:
            merged[name] = value
    return {name: value for name, value in merged.items() if value is not None}


def _reckoned(known: dict[str, Any], written: Mapping[str, Any]) -> Iterator[str]:
    """Fields that the class works out from others, and that the user did not write."""
    heads, width = known.get("num_attention_heads"), known.get("hidden_size")
    if heads and width and known.get("head_dim") == width // heads and "head_dim" not in written:
        yield "head_dim"
    for name in ("layer_types", "mlp_layer_types"):
        if name in known and name not in written:
            yield name
