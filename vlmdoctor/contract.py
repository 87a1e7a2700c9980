"""What a run is meant to be: a few short terms, kept in `[tool.vlmdoctor.contract]` of pyproject.toml.

vision = "frozen"
projector = "train, lr 0.001"
language = "lora"
supervise = "assistant + stop"
image-tokens = "64 per image"
precision = "bf16"
steps = 40000
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import UserError

if TYPE_CHECKING:
    from vlmdoctor.evidence.parameters import Parameter

ROLE_KEYS = ("vision", "projector", "language", "head")
STATES = ("frozen", "train", "partly", "lora")
SUPERVISE = ("assistant", "assistant + stop", "everything")
PRECISIONS = {
    **dict.fromkeys(("bf16", "bfloat16"), "bf16"),
    **dict.fromkeys(("fp16", "float16", "half"), "fp16"),
    **dict.fromkeys(("float32", "fp32"), "float32"),
}
LR_TOLERANCE = 0.01
NEARLY_ALL = 0.9  # of a part's numbers: a fixed position table among them does not make it `partly`

_RATE = re.compile(r"lr\s+([0-9.eE+-]+)")


def parse(table: Any, where: str) -> dict[str, str]:
    """The terms of a contract, each in its usual spelling; `where` is named in errors.

    Raises:
        UserError: A key or a value that makes no sense, with what might have been meant.
    """
    if not isinstance(table, Mapping):
        raise UserError(f'{where} must be a table of terms such as vision = "frozen".')
    terms = {}
    for key, value in table.items():
        name = str(key).strip().replace("_", "-").replace(" ", "-")
        if name not in _PARSERS:
            raise UserError(f"unknown term '{key}' in {where}{_suggestion(name, _PARSERS)}.")
        text = " ".join(str(value).split()) if isinstance(value, str | int) else ""
        parsed = None if isinstance(value, bool) else _PARSERS[name](text)
        if parsed is None:
            raise UserError(f"'{name}' in {where} can't be {value!r}{_suggestion(text, _EXAMPLES[name])}.")
        terms[name] = parsed
    return terms


def state_of(term: str) -> str:
    """`train` of `train, lr 0.001`."""
    return term.partition(",")[0]


def rate_of(term: str) -> float | None:
    """0.001 of `train, lr 0.001`; None where none is given."""
    match = _RATE.search(term)
    return float(match[1]) if match else None


def state_seen(part: Sequence[Parameter]) -> str | None:
    """`frozen`, `train`, `partly` or `lora`, as the parameters of one role are; None without any."""
    learning = [p for p in part if p.requires_grad]
    if not learning:
        return "frozen" if part else None
    base = [p for p in part if not _is_adapter(p)]
    if len(base) < len(part) and not any(p.requires_grad for p in base):
        return "lora"
    share = sum(p.numel for p in learning) / max(1, sum(p.numel for p in part))
    return "train" if share >= NEARLY_ALL else "partly"


def declared(parameters: Sequence[Parameter], contract: Mapping[str, str]) -> list[Parameter]:
    """The parameters with `wanted` as the contract has it: None where it leaves that open."""
    seen = {role: state_seen([p for p in parameters if p.role == role]) for role in ROLE_KEYS}
    found = []
    for parameter in parameters:
        state = state_of(contract.get(parameter.role, ""))
        wanted = {"frozen": False, "train": True, "lora": _is_adapter(parameter)}.get(state)
        if state == seen.get(parameter.role):
            wanted = parameter.requires_grad  # kept: a fixed table in a part that learns is nobody's mistake
        found.append(dataclasses.replace(parameter, wanted=wanted))
    return found


def _is_adapter(parameter: Parameter) -> bool:
    return "lora_" in parameter.name


def deviates(key: str, expected: str, seen: str) -> bool:
    """Whether what was seen is not what the contract says."""
    if key not in ROLE_KEYS:
        return expected != seen
    if state_of(expected) != state_of(seen):
        return True
    meant, found = rate_of(expected), rate_of(seen)
    return meant is not None and found is not None and abs(found - meant) > LR_TOLERANCE * abs(meant)


def shown(expected: Mapping[str, str], seen: Mapping[str, str]) -> dict[str, str]:
    """The terms for a person: those of the contract, and behind them what was seen of the rest."""
    told = {}
    for key in dict.fromkeys((*expected, *seen)):
        if key not in expected:
            told[key] = f"{seen[key]} (seen; no contract says so)"
        else:
            told[key] = expected[key] + (
                "" if key in seen else " (not checked: it can't be determined from here)"
            )
    return told


def written(terms: Mapping[str, str]) -> str:
    """The terms as lines of TOML."""
    return "".join(f"{key} = {text if text.isdigit() else _quoted(text)}\n" for key, text in terms.items())


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _role(text: str) -> str | None:
    state, comma, rest = text.partition(",")
    if state not in STATES:
        return None
    if not comma:
        return state
    match = _RATE.fullmatch(rest.strip())
    try:
        rate = float(match[1]) if match else -1.0
    except ValueError:
        return None
    return f"{state}, lr {rate:g}" if rate >= 0 and state != "frozen" else None


def _one_of(*allowed: str) -> Callable[[str], str | None]:
    return lambda text: text if text in allowed else None


def _supervise(text: str) -> str | None:
    text = re.sub(r"\s*\+\s*", " + ", text)
    return text if text in SUPERVISE else None


def _image_tokens(text: str) -> str | None:
    match = re.fullmatch(r"(\d+)( per image)?", text)
    return f"{int(match[1])} per image" if match and int(match[1]) > 0 else None


def _steps(text: str) -> str | None:
    return str(int(text)) if text.isascii() and text.isdigit() and int(text) > 0 else None


_PARSERS: dict[str, Callable[[str], str | None]] = {
    **dict.fromkeys(ROLE_KEYS, _role),
    "new-token-rows": _one_of("train", "frozen"),
    "supervise": _supervise,
    "image-tokens": _image_tokens,
    "precision": PRECISIONS.get,
    "steps": _steps,
}
_EXAMPLES: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(ROLE_KEYS, (*STATES, "train, lr 0.001")),
    "new-token-rows": ("train", "frozen"),
    "supervise": SUPERVISE,
    "image-tokens": ("64 per image",),
    "precision": ("bf16", "fp16", "float32"),
    "steps": ("40000",),
}


def _suggestion(text: str, known: Any) -> str:
    close = difflib.get_close_matches(text, list(known), n=1)
    return f" (did you mean '{close[0]}'?)" if close else f"; known are {', '.join(known)}"
