"""What a shell completes: names that are known without importing torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def complete_rules(incomplete: str) -> Iterator[tuple[str, str]]:
    """Areas, codes and names of rules, in the case that was begun with."""
    from vlmdoctor.rulebook import all_rules, area_title

    rules = all_rules()
    named = [(area, area_title(area)) for area in dict.fromkeys(one.area for one in rules)]
    for one in rules:
        named += [(one.code, one.summary), (one.name, one.summary)]
    begun = incomplete.lower()
    for name, about in named:
        if name.lower().startswith(begun):
            yield (incomplete + name[len(incomplete) :] if incomplete.islower() else name), about


def complete_gpus(incomplete: str) -> list[str]:
    """GPUs that a dry run knows."""
    from vlmdoctor.knowledge.gpus import GPUS

    return _beginning(GPUS, incomplete)


def complete_formats(incomplete: str) -> list[str]:
    """Output formats."""
    from vlmdoctor import reporters

    return _beginning(reporters.names(), incomplete)


def complete_depths(incomplete: str) -> list[str]:
    """How deep `check` can go."""
    from vlmdoctor.engine import DEPTHS

    return _beginning(DEPTHS, incomplete)


def complete_targets(incomplete: str) -> list[str]:
    """The bundled presets, and files: a folder with a model, or a script whose factory is typed behind it."""
    from pathlib import Path

    from minivlm.presets import PRESETS

    bundled = _beginning(["minivlm", *(f"minivlm:{name}" for name in PRESETS)], incomplete)
    folder, begun = incomplete.rpartition("/")[::2]
    try:
        beside = sorted(Path(folder or ("/" if incomplete.startswith("/") else ".")).iterdir())
    except OSError:
        return bundled
    prefix = incomplete[: len(incomplete) - len(begun)]
    known = [one for one in beside if one.name.startswith(begun) and (begun or one.name[0] != ".")]
    files = [f"{prefix}{one.name}:" for one in known if one.suffix == ".py"]
    return [*bundled, *files, *(f"{prefix}{one.name}" for one in known if _with_a_model(one))]


def _with_a_model(path: object) -> bool:
    return path.is_dir() or getattr(path, "suffix", "") == ".json"  # type: ignore[attr-defined]


def _beginning(names: Iterable[str], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
