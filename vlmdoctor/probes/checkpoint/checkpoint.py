"""A checkpoint against the model: which weights it has, under which names, and whether they were loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.checkpoint import SAME_PART, Checkpoint, Weight, is_resized
from vlmdoctor.knowledge import parameter_names
from vlmdoctor.knowledge.parameter_names import is_adapter, role_of
from vlmdoctor.probes.checkpoint import names
from vlmdoctor.probes.checkpoint.files import CheckpointFiles, open_checkpoint, sample_of
from vlmdoctor.subject import Subject


def probe(subject: Subject, gather: Callable[[type], Any]) -> Checkpoint:
    """Compares names and shapes of all tensors, and a few values of each; loads none of them."""
    if subject.checkpoint is None:
        raise Unavailable("no checkpoint was given")
    with open_checkpoint(subject.checkpoint) as files:
        return compare(subject.model, files)


def compare(model: Any, files: CheckpointFiles) -> Checkpoint:
    """The model's weights beside those in `files`."""
    parameters: dict[str, Any] = {}
    raw_names: set[str] = set()
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for raw_name, parameter in model.named_parameters(remove_duplicate=False):
        if ".original_module." in raw_name:
            continue  # PEFT's spare copy of a module that it trains whole
        raw_names.add(raw_name)
        name = parameter_names.plain_name(raw_name)
        aliases[name] = first.setdefault(id(parameter), name)
        parameters.setdefault(aliases[name], parameter)
    for raw_name, _ in model.named_buffers():
        aliases.setdefault(parameter_names.plain_name(raw_name), parameter_names.plain_name(raw_name))

    adapter_only = _adapter_only(files.shapes)
    beside = {parameter_names.plain_name(key) for key in files.shapes if not parameter_names.is_adapter(key)}
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    if adapter_only:
        trained_base = not _mostly_fresh(p for name, p in parameters.items() if role_of(name) == "language")
        shapes = {
            name: shape
            for name, shape in shapes.items()
            if parameter_names.is_adapter(name)
            or name in beside
            or (trained_base and role_of(name) == "projector")
        }
    renaming = names.Renaming(model, aliases)
    found, left = names.matches(renaming, shapes, aliases, files.shapes, raw_names)
    weights = []
    for name, shape in shapes.items():
        adapter, role = parameter_names.is_adapter(name), role_of(name)
        match, parameter = found.get(name), parameters[name]
        if match is None:
            fresh = True if parameter.is_meta else looks_fresh(parameter)
            weights.append(Weight(name=name, role=role, shape=shape, adapter=adapter, fresh=fresh))
            continue
        if match.converted:
            weights.append(
                Weight(name=name, role=role, shape=shape, key=match.key, key_shape=shape, adapter=adapter)
            )
            continue
        equal, agreement, distance = _values(name, parameter, match.key, files)
        weights.append(
            Weight(
                name=name,
                role=role,
                shape=shape,
                key=match.key,
                key_shape=files.shapes[match.key],
                renamed=None if adapter_only else match.renamed,
                by_loader=match.by_loader,
                equal=equal,
                agreement=agreement,
                distance=distance,
                adapter=adapter,
            )
        )
    weights = [_as_meant(weight, weights, parameters[weight.name]) for weight in weights]
    left += [weight.alike for weight in weights if weight.alike is not None]
    unplaced = {key: files.shapes[key] for key in left if not _is_buffer(key)}
    laid_out = all(parameter.is_meta for parameter in parameters.values())
    return Checkpoint(
        shown=files.shown,
        tensors=len(files.shapes),
        weights=tuple(weights),
        unplaced=unplaced,
        adapter_only=adapter_only,
        laid_out=laid_out,
    )


def _as_meant(weight: Weight, weights: Sequence[Weight], parameter: Any) -> Weight:
    """`weight`; without a tensor of the checkpoint where the one with a like name may be another's.

    No loader brings the two together, their values are unrelated, and most of the part has its own names.
    """
    if weight.renamed is None or weight.by_loader or weight.state != "not_loaded":
        return weight
    part = [w for w in weights if w.role == weight.role]
    renamed = [w for w in part if w.renamed is not None]
    if sum(w.numel for w in renamed) >= SAME_PART * sum(w.numel for w in part):
        return weight
    fresh = True if parameter.is_meta else looks_fresh(parameter)
    return Weight(
        name=weight.name,
        role=weight.role,
        shape=weight.shape,
        adapter=weight.adapter,
        fresh=fresh,
        alike=weight.key,
    )


def _adapter_only(keys: Mapping[str, Any]) -> bool:
    adapters = sum(map(is_adapter, keys))
    # Beside the adapters stand at most a few whole modules (`modules_to_save`).
    return adapters > len(keys) / 2 and not any(".base_layer." in key for key in keys)


# Tables that older versions wrote as buffers and newer ones compute.
_BUFFERS = (
    "position_ids",
    "inv_freq",
    "masked_bias",
    "attn.bias",
    "num_batches_tracked",
    "relative_position_index",
)


def _is_buffer(key: str) -> bool:
    return key.endswith(_BUFFERS)


Values = tuple[bool | None, float | None, float | None]


def _values(name: str, parameter: Any, key: str, files: CheckpointFiles) -> Values:
    """`Weight.equal`, `agreement` and `distance` of a sample of the values."""

    shape, key_shape = tuple(parameter.shape), files.shapes[key]
    comparable = (
        type(parameter) in (torch.nn.Parameter, torch.Tensor)
        and not parameter.is_meta
        and parameter.is_floating_point()
        and parameter.numel()
        and "float" in files.dtypes[key]
        and (shape == key_shape or is_resized(name, shape, key_shape))
    )
    rows = min(shape[0], key_shape[0]) if comparable and shape else 1
    if not comparable or not rows:
        return None, None, None
    mine, theirs = sample_of(parameter, shape, rows), files.sample(key, rows)
    dtypes = str(parameter.dtype).removeprefix("torch."), files.dtypes[key]
    return compared(mine, theirs, max(ROUNDING.get(dtype, 0.0) for dtype in dtypes))


def compared(mine: Any, theirs: Any, rounding: float) -> Values:
    """(equal up to the relative `rounding`, correlation, distance) of two samples of values."""
    finite = mine.isfinite() & theirs.isfinite()
    mine, theirs = mine[finite].double(), theirs[finite].double()
    equal = bool(torch.allclose(mine, theirs, rtol=2 * rounding, atol=1e-7 if rounding else 0.0))
    spread, key_spread = float(mine.std(unbiased=False)), float(theirs.std(unbiased=False))
    if mine.numel() < FEW or not (spread or key_spread):
        return equal, None, None
    distance = float((mine - theirs).norm()) / max(float(theirs.norm()), 1e-30)
    if not (spread and key_spread):
        return equal, 0.0, round(distance, 4)
    centred = float(((mine - mine.mean()) * (theirs - theirs.mean())).mean())
    return equal, round(centred / (spread * key_spread), 4), round(distance, 4)


FEW = 16  # values: below it, a correlation is chance
ROUNDING = {"bfloat16": 2**-8, "float16": 2**-11, "float8_e4m3fn": 2**-4, "float8_e5m2": 2**-3}
FRESH_SIZE = 256


def _mostly_fresh(parameters: Iterable[Any]) -> bool:
    known = [fresh for parameter in parameters if (fresh := looks_fresh(parameter)) is not None]
    return sum(known) * 2 >= len(known)


def looks_fresh(parameter: Any) -> bool | None:
    """Whether a weight's values look like those that torch or transformers give a new module.

    A new `nn.Linear` is uniform up to exactly 1/sqrt(inputs), which training does not keep; transformers
    draws normally with a deviation of 0.02. None where it is too small or has no values.
    """
    if parameter.is_meta or parameter.ndim < 2 or parameter.numel() < FRESH_SIZE:
        return None
    if not parameter.is_floating_point() or type(parameter) not in (torch.nn.Parameter, torch.Tensor):
        return None
    values = parameter.detach().flatten()[:65536].double().cpu()
    spread = float(values.std())
    if spread == 0:
        return None
    bound = (parameter[0].numel()) ** -0.5
    peak = float(values.abs().max())
    kurtosis = float(((values - values.mean()) ** 4).mean()) / spread**4
    slack = 3 * (24 / values.numel()) ** 0.5
    uniform = 0.97 * bound <= peak <= 1.004 * bound and abs(kurtosis - 1.8) < slack
    normal = abs(spread - 0.02) < 0.02 * 4 * (2 * values.numel()) ** -0.5 and abs(kurtosis - 3) < slack
    return uniform or normal
