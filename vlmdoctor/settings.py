"""Settings in `[tool.vlmdoctor]` of the nearest pyproject.toml; the command line wins over them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmdoctor import boundary, contract, statements
from vlmdoctor.errors import UserError
from vlmdoctor.plain_text import first_line
from vlmdoctor.subject import Subject

LARGEST = 10_000_000  # bytes of a pyproject.toml that is read
_PARSERS: Mapping[str, Callable[[Any, str], Any]] = {
    "roles": statements.parse_roles,
    "image-token-id": statements.parse_image_token_id,
    "labels-name": statements.parse_labels_name,
}


@dataclass(frozen=True)
class Settings:
    """What a project has settled. `None` and empty mean that nothing was said."""

    select: tuple[str, ...] = ()
    extend_select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    output_format: str | None = None
    fail_on: str | None = None
    contract: Mapping[str, str] | None = None
    roles: Mapping[str, tuple[str, ...]] | None = None
    image_token_id: int | None = None
    labels_name: str | None = None

    def fill(self, subject: Subject) -> None:
        """Puts what is settled into the fields that `subject` leaves open."""
        for name in ("contract", "roles", "image_token_id", "labels_name"):
            if getattr(subject, name) is None:
                setattr(subject, name, getattr(self, name))


def load(folder: Path | None = None) -> Settings:
    """The settings for `folder` (default: the current one), from the nearest pyproject.toml at or above it.

    Raises:
        UserError: The file is not TOML, or a key or value in the section makes no sense.
    """
    try:
        start = (folder or Path.cwd()).resolve()
    except (OSError, RuntimeError):
        return Settings()  # the current folder was deleted
    for place in (start, *start.parents):
        path = place / "pyproject.toml"
        if boundary.is_file(path):
            tools = _read(path).get("tool", {})
            return parse(tools.get("vlmdoctor", {}) if isinstance(tools, dict) else {}, path)
    return Settings()


def parse(section: Any, path: Path) -> Settings:
    """The `[tool.vlmdoctor]` section as settings; `path` is named in errors."""
    if not isinstance(section, dict):
        raise UserError(f"[tool.vlmdoctor] in {path} must be a table of settings.")
    known = {field.name.replace("_", "-"): field for field in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for key, value in section.items():
        name = key.replace("_", "-")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else f"; known are {', '.join(known)}"
            raise UserError(f"unknown setting '{key}' in [tool.vlmdoctor] of {path}{hint}.")
        if name == "contract":
            values[name] = contract.parse(value, f"[tool.vlmdoctor.contract] of {path}")
            continue
        if name in _PARSERS:
            values[known[name].name] = _PARSERS[name](value, f"'{key}' in [tool.vlmdoctor] of {path}")
            continue
        if known[name].default == ():
            if isinstance(value, str):
                value = [value]
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise UserError(f"'{key}' in [tool.vlmdoctor] of {path} must be a list of texts.")
            value = tuple(value)
        elif not isinstance(value, str):
            raise UserError(f"'{key}' in [tool.vlmdoctor] of {path} must be a text.")
        values[known[name].name] = value
    return Settings(**values)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = boundary.read_bytes(path, LARGEST)
    except boundary.Unreadable:
        return {}
    if b"vlmdoctor" not in data:
        # Most projects settle nothing, and a broken file of theirs is not for us to judge.
        return {}
    return parsed(data, path)


def parsed(data: bytes, path: Path) -> dict[str, Any]:
    """The content of a TOML file; raises `UserError` where it is none, whatever it is instead."""
    import tomllib

    try:
        return tomllib.loads(data.decode("utf-8"))
    except RecursionError:
        raise UserError(f"{path} is nested too deeply to be read.") from None
    except ValueError as error:  # no TOML, no UTF-8, no date, or an integer of thousands of digits
        raise UserError(f"{path} is not valid TOML: {first_line(error)}.") from None
