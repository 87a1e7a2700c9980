"""Which tensor of a checkpoint belongs to which parameter: as a loader has it, and as it was surely meant."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vlmdoctor.knowledge.parameter_names import canonical_name, plain_name, role_of

Shape = tuple[int, ...]
Prefixes = tuple[str, str]
MOST_CANDIDATES = 16


@dataclass(frozen=True)
class Match:
    """The checkpoint's tensor for a parameter.

    Attributes:
        key: Its name in the checkpoint.
        renamed: (what the checkpoint's name begins with, what the parameter's begins with), where the names
            differ by that, so that `load_state_dict` does not bring the two together; None where it does.
        by_loader: Whether `from_pretrained` renames it so by itself.
        converted: Whether `transformers` computes the parameter from it (fuses, splits, permutes).
    """

    key: str
    renamed: Prefixes | None = None
    by_loader: bool = False
    converted: bool = False


def innermost_model(model: Any) -> Any:
    """The model inside of torch.compile, DDP and PEFT."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
            inner = model.get_base_model()
        if inner is None and type(model).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = model.module
        if inner is None:
            return model
        model = inner


class Renaming:
    """The names under which `transformers` loads a checkpoint's tensors; for other models, their own."""

    def __init__(self, model: Any, names: Iterable[str]) -> None:
        self._known = dict.fromkeys(names, True)
        self._rename: Any = None
        self._base = None
        self._renamings, self._converters = [], []
        self._unexpected: re.Pattern[str] | None = None
        inner = innermost_model(model)
        if not hasattr(inner, "base_model_prefix") or not hasattr(inner, "config"):
            return
        try:
            from transformers import conversion_mapping, core_model_loading

            transforms = conversion_mapping.get_model_conversion_mapping(inner) or []
            core_model_loading.rename_source_key("", [], [], inner.base_model_prefix, {})
        except (ImportError, AttributeError, TypeError, ValueError):
            return  # an unknown version, or a look-alike of a transformers model: names as they are
        renaming = core_model_loading.WeightRenaming
        self._rename = core_model_loading.rename_source_key
        self._renamings = [entry for entry in transforms if isinstance(entry, renaming)]
        self._converters = [entry for entry in transforms if not isinstance(entry, renaming)]
        self._base = inner.base_model_prefix
        patterns = [*(getattr(inner, "_keys_to_ignore_on_load_unexpected", None) or ())]
        self._unexpected = re.compile("|".join(f"(?:{p})" for p in patterns)) if patterns else None

    def targets(self, key: str) -> tuple[list[str], bool]:
        """The parameters that a checkpoint's key is loaded into, and whether its tensor is converted."""
        plain = plain_name(key)
        if self._rename is None:
            return [plain], False
        for candidate in dict.fromkeys((key, plain)):
            renamed, source = self._rename(
                candidate, self._renamings, self._converters, self._base, self._known
            )
            if source is not None:
                converter = next(c for c in self._converters if source in c.source_patterns)
                first = converter.target_patterns[0]
                names = [renamed.replace(first, other) for other in converter.target_patterns]
                if any(name in self._known for name in names):
                    return names, True
            if renamed in self._known:
                return [renamed], False
        # A name that no renaming was meant for: as it is, with or without the base model's prefix.
        for name in (plain, f"{self._base}.{plain}", plain.removeprefix(f"{self._base}.")):
            if name in self._known:
                return [name], False
        return [plain], False

    def ignored(self, key: str) -> bool:
        """Whether the model's class declares that it drops this key."""
        return self._unexpected is not None and self._unexpected.search(key) is not None


def matches(
    renaming: Renaming,
    model: Mapping[str, Shape],
    aliases: Mapping[str, str],
    keys: Mapping[str, Shape],
    raw_names: Container[str] = (),
) -> tuple[dict[str, Match], list[str]]:
    """Parameter -> its tensor in the checkpoint, and the keys that belong to none.

    Args:
        renaming: The loader's view of names.
        model: Parameter -> shape.
        aliases: Any name (a tied one, a buffer's) -> the parameter, or the name itself for buffers.
        keys: Checkpoint key -> shape.
        raw_names: The parameters' names with whatever wrappers put into them.
    """
    found: dict[str, Match] = {}
    left = []
    for key in keys:
        targets, converted = renaming.targets(key)
        known = [aliases[name] for name in targets if name in aliases]
        for name in known:
            if name in model:
                own = key in raw_names or key in aliases
                renamed = None if own or converted else _differing(key, targets[0])
                by_loader = renamed is not None and key == canonical_name(key)  # not with DDP's `module.`
                found.setdefault(name, Match(key, renamed, by_loader, converted))
        if not known:
            left.append(key)
    missing = {name: shape for name, shape in model.items() if name not in found}
    for name, key, prefixes in _by_prefix(missing, {key: keys[key] for key in left}):
        found[name] = Match(key, renamed=prefixes)
    taken = {match.key for match in found.values()}
    for name, key in _by_shape(
        {name: shape for name, shape in missing.items() if name not in found},
        {key: keys[key] for key in left if key not in taken},
    ):
        found[name] = Match(key, renamed=(key, name))
    taken = {match.key for match in found.values()}
    return found, [key for key in left if key not in taken and not renaming.ignored(key)]


def _by_prefix(missing: Mapping[str, Shape], keys: Mapping[str, Shape]) -> list[tuple[str, str, Prefixes]]:
    """(parameter, key, prefixes) where the two differ only by what they begin with, and shapes agree.

    Which prefixes correspond is voted on by all pairs with the longest common ending; the pair with the
    most votes goes first.
    """
    by_ending: dict[str, list[str]] = {}
    for name in missing:
        for ending in _endings(name):
            by_ending.setdefault(ending, []).append(name)
    votes: Counter[Prefixes] = Counter()
    pairs: dict[Prefixes, list[tuple[str, str]]] = {}
    for key, shape in keys.items():
        for ending in _endings(plain_name(key)):
            if "." not in ending:
                break  # `weight` alone says nothing
            names = [name for name in by_ending.get(ending, ()) if missing[name] == shape]
            # Of several blocks, the one with the same number.
            names = [name for name in names if _numbers(name) == _numbers(key)] or names
            for name in names[:MOST_CANDIDATES]:
                prefixes = (key[: -len(ending)] if key.endswith(ending) else "", name[: -len(ending)])
                votes[prefixes] += 1
                pairs.setdefault(prefixes, []).append((name, key))
            if names:
                break
    done_names, done_keys, chosen = set[str](), set[str](), []
    for prefixes, _ in votes.most_common():
        for name, key in pairs[prefixes]:
            if name not in done_names and key not in done_keys:
                done_names.add(name)
                done_keys.add(key)
                chosen.append((name, key, prefixes))
    return chosen


def _numbers(name: str) -> list[str]:
    return [part for part in name.split(".") if part.isdecimal()]


def _differing(key: str, name: str) -> Prefixes:
    """What the two names begin with before their longest common ending."""
    common = next((end for end in _endings(name) if key == end or key.endswith(f".{end}")), "")
    return key[: len(key) - len(common)], name[: len(name) - len(common)]


def _by_shape(missing: Mapping[str, Shape], keys: Mapping[str, Shape]) -> Iterator[tuple[str, str]]:
    """Projectors have as many names as there are repositories: those that are left are paired by shape."""
    waiting: dict[Shape, list[str]] = {}
    for key, shape in keys.items():
        if role_of(plain_name(key)) == "projector":
            waiting.setdefault(shape, []).append(key)
    for name, shape in missing.items():
        if role_of(name) == "projector" and waiting.get(shape):
            yield name, waiting[shape].pop(0)


def _endings(name: str) -> Sequence[str]:
    """The dotted endings of a name, longest first.

    >>> _endings("a.b.weight")
    ['a.b.weight', 'b.weight', 'weight']
    """
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]
