"""Settings in `[tool.vlmdoctor]` of the nearest pyproject.toml; the command line wins over them."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmdoctor import contract
from vlmdoctor.errors import UserError


@dataclass(frozen=True)
class Settings:
    """What a project has settled. `None` and empty mean that nothing was said."""

    select: tuple[str, ...] = ()
    extend_select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    output_format: str | None = None
    fail_on: str | None = None
    contract: Mapping[str, str] | None = None


def load(folder: Path | None = None) -> Settings:
    """The settings for `folder` (default: the current one), from the nearest pyproject.toml at or above it.

    Raises:
        UserError: The file is not TOML, or a key or value in the section makes no sense.
    """
    try:
        start = (folder or Path.cwd()).resolve()
    except OSError:
        return Settings()  # the current folder was deleted
    for place in (start, *start.parents):
        path = place / "pyproject.toml"
        if path.is_file():
            return parse(_read(path).get("tool", {}).get("vlmdoctor", {}), path)
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
        text = path.read_bytes()
    except OSError:
        return {}
    if b"vlmdoctor" not in text:
        # Most projects settle nothing, and a broken file of theirs is not for us to judge.
        return {}
    import tomllib

    try:
        return tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from None
