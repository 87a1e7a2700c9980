"""A checkpoint against the model: which weights it has, under which names, and whether they were loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import Unavailable
from vlmdoctor.subject import role_of

if TYPE_CHECKING:
    from vlmdoctor.evidence.checkpoint_files import CheckpointFiles
    from vlmdoctor.subject import Subject

DEPTH = "static"


@dataclass(frozen=True)
class Weight:
    """One parameter of the model beside the checkpoint's tensor for it.

    Attributes:
        name: Canonical name, as in `Parameter.name`.
        role: `vision`, `projector`, `language`, `head` or `other`.
        shape: The parameter's shape.
        key: The tensor's name in the checkpoint; None where it has none for this parameter.
        key_shape: That tensor's shape.
        renamed: (what the key begins with, what the parameter's name begins with), where the names differ
            by that, so that `load_state_dict` does not bring them together.
        by_loader: Whether `from_pretrained` renames it so by itself.
        equal: Whether the compared values are the same, up to the rounding of the coarser data type; None
            where they were not compared.
        agreement: Correlation of the compared values; None where they were not compared, are few or constant.
        distance: Norm of their difference over the norm of the checkpoint's; None likewise.
        fresh: Whether the parameter's values look like those of a new module; None where not looked at.
        alike: A tensor of the checkpoint whose name ends alike, where it is not known whether it is meant.
        adapter: Whether it belongs to an adapter.
    """

    name: str
    role: str
    shape: tuple[int, ...]
    key: str | None = None
    key_shape: tuple[int, ...] | None = None
    renamed: tuple[str, str] | None = None
    by_loader: bool = False
    equal: bool | None = None
    agreement: float | None = None
    distance: float | None = None
    fresh: bool | None = None
    adapter: bool = False
    alike: str | None = None

    @property
    def numel(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def state(self) -> str:
        """One of `STATES`."""
        if self.key is None:
            return "missing"
        return {True: "loaded", False: "not_loaded", None: "unknown"}[self.loaded]

    @property
    def loaded(self) -> bool | None:
        """Whether its values are the checkpoint's, or at least descend from them; None where unknown."""
        if self.key is None:
            return False
        if self.equal or (self.agreement is not None and self.agreement >= RELATED):
            return True
        # Norms near 1 are close to each other without being related.
        unrelated = self.agreement is not None and self.distance is not None and self.distance >= FAR
        return False if unrelated else None


STATES = ("loaded", "not_loaded", "missing", "unknown")
SAME_PART = 0.8  # of a part's numbers: fewer that differ only by a prefix may belong to another network
RELATED = 0.5  # correlation: fine-tuning leaves it above 0.9, random values have none
FAR = 0.5  # relative distance: of unrelated values it is about 1.4


@dataclass(frozen=True)
class Checkpoint:
    """What the checkpoint holds for the model.

    Attributes:
        shown: The path, or what else was given.
        tensors: How many tensors it holds.
        weights: One entry for each parameter of the model, in its order.
        unplaced: Key -> shape of the tensors that belong to no parameter or buffer.
        adapter_only: Whether it holds nothing but adapters (and modules saved with them).
        laid_out: Whether the model has no values yet, so that what the checkpoint lacks will be drawn.
    """

    shown: str
    tensors: int
    weights: tuple[Weight, ...]
    unplaced: Mapping[str, tuple[int, ...]]
    adapter_only: bool = False
    laid_out: bool = False

    def counts(self) -> dict[str, int]:
        """State -> number of the model's parameters; together, all that the checkpoint could hold."""
        return {state: sum(weight.state == state for weight in self.weights) for state in STATES}


def probe(subject: Subject, gather: Callable[[type], Any]) -> Checkpoint:
    """Compares names and shapes of all tensors, and a few values of each; loads none of them."""
    from vlmdoctor.evidence.checkpoint_files import open_checkpoint

    if subject.checkpoint is None:
        raise Unavailable("no checkpoint was given")
    with open_checkpoint(subject.checkpoint) as files:
        return compare(subject.model, files)


def compare(model: Any, files: CheckpointFiles) -> Checkpoint:
    """The model's weights beside those in `files`."""
    from vlmdoctor.evidence import checkpoint_names as names

    parameters: dict[str, Any] = {}
    raw_names: set[str] = set()
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for raw_name, parameter in model.named_parameters(remove_duplicate=False):
        if ".original_module." in raw_name:
            continue  # PEFT's spare copy of a module that it trains whole
        raw_names.add(raw_name)
        name = names.plain_name(raw_name)
        aliases[name] = first.setdefault(id(parameter), name)
        parameters.setdefault(aliases[name], parameter)
    for raw_name, _ in model.named_buffers():
        aliases.setdefault(names.plain_name(raw_name), names.plain_name(raw_name))

    adapter_only = _adapter_only(files.shapes)
    beside = {names.plain_name(key) for key in files.shapes if not names.is_adapter(key)}
    shapes = {name: tuple(p.shape) for name, p in parameters.items()}
    if adapter_only:
        trained_base = not _mostly_fresh(p for name, p in parameters.items() if role_of(name) == "language")
        shapes = {
            name: shape
            for name, shape in shapes.items()
            if names.is_adapter(name) or name in beside or (trained_base and role_of(name) == "projector")
        }
    renaming = names.Renaming(model, aliases)
    found, left = names.matches(renaming, shapes, aliases, files.shapes, raw_names)
    weights = []
    for name, shape in shapes.items():
        adapter, role = names.is_adapter(name), role_of(name)
        match, parameter = found.get(name), parameters[name]
        if match is None:
            fresh = True if parameter.is_meta else looks_fresh(parameter)
            weights.append(Weight(name, role, shape, adapter=adapter, fresh=fresh))
            continue
        if match.converted:
            weights.append(Weight(name, role, shape, match.key, shape, adapter=adapter))
            continue
        equal, agreement, distance = _values(name, parameter, match.key, files)
        weights.append(
            Weight(
                name,
                role,
                shape,
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
    return Checkpoint(files.shown, len(files.shapes), tuple(weights), unplaced, adapter_only, laid_out)


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
        weight.name, weight.role, weight.shape, adapter=weight.adapter, fresh=fresh, alike=weight.key
    )


def _adapter_only(keys: Mapping[str, Any]) -> bool:
    from vlmdoctor.evidence.checkpoint_names import is_adapter

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


def is_resized(name: str, shape: tuple[int, ...], key_shape: tuple[int, ...]) -> bool:
    """Whether the two are a table of tokens with more or fewer rows."""
    table = role_of(name) == "head" or re.search(r"embed|wte|shared|tok", name) is not None
    return table and len(shape) == len(key_shape) and shape[1:] == key_shape[1:] and "pos" not in name


def _values(name: str, parameter: Any, key: str, files: CheckpointFiles) -> Values:
    """`Weight.equal`, `agreement` and `distance` of a sample of the values."""
    import torch

    from vlmdoctor.evidence.checkpoint_files import sample_of

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
    import torch

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
    import torch

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
