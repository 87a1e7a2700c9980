"""The contract's place in pyproject.toml: the rest of the file stays as it is, byte for byte."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from vlmdoctor import boundary
from vlmdoctor.errors import UserError
from vlmdoctor.settings import LARGEST, parsed

HEADER = "[tool.vlmdoctor.contract]"
_OWN = re.compile(
    r"[ \t]*\[[ \t]*tool[ \t]*\.[ \t]*vlmdoctor[ \t]*\.[ \t]*contract[ \t]*\][ \t]*(#.*)?\r?\n?"
)
_ANY = re.compile(r"[ \t]*\[")


def nearest(folder: Path) -> Path:
    """The pyproject.toml at or above `folder`; where there is none, the one to be made in it."""
    places = [place / "pyproject.toml" for place in (folder, *folder.parents)]
    return next((path for path in places if boundary.is_file(path)), places[0])


def content(path: Path) -> str:
    """What is in the file so far; raises `UserError` where that can't be read as text."""
    if not boundary.exists(path):
        return ""
    data = boundary.read_bytes(path, LARGEST)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not valid TOML: it is no UTF-8 text (byte {error.start}).") from None


def with_contract(text: str, lines: str, path: Path, *, force: bool) -> str:
    """`text` with the section of the contract, its last one or in place of the old one.

    Raises:
        UserError: The file is not TOML, has a contract (and not `force`), or has it in another form.
    """
    before = parsed(text.encode("utf-8"), path)
    tools = before.get("tool", {})
    section = tools.get("vlmdoctor", {}) if isinstance(tools, dict) else {}
    if isinstance(section, dict) and "contract" in section and not force:
        raise UserError(f"{path} has a contract already; --force replaces it.")
    ending = "\r\n" if "\r\n" in text else "\n"
    made = (HEADER + "\n" + lines).replace("\n", ending)
    kept = text.splitlines(keepends=True)
    start = next((i for i, line in enumerate(kept) if _OWN.fullmatch(line)), None)
    if start is None:
        gap = "" if not text else ending if text.endswith("\n") else ending * 2
        changed = text + gap + made
    else:
        end = next((i for i in range(start + 1, len(kept)) if _ANY.match(kept[i])), len(kept))
        # Blank lines and comments in front of the next section belong to that.
        while end > start + 1 and (not kept[end - 1].strip() or kept[end - 1].lstrip().startswith("#")):
            end -= 1
        changed = "".join(kept[:start]) + made + "".join(kept[end:])
    # TOML can spell a table in many ways: what was written is read again, and the rest compared.
    try:
        same = _others(parsed(changed.encode("utf-8"), path)) == _others(before)
    except UserError:
        same = False
    if not same:
        raise UserError(
            f"{path} holds its tables in a form that no section can be added to; put the lines in by hand: "
            f"vlmdoctor init --dry-run prints them."
        )
    return changed


def _others(parsed: dict[str, Any]) -> dict[str, Any]:
    tools = parsed.get("tool", {})
    if not isinstance(tools, dict):
        return {"outside": parsed}
    own = tools.get("vlmdoctor", {})
    rest = {key: value for key, value in own.items() if key != "contract"} if isinstance(own, dict) else own
    others = {key: value for key, value in tools.items() if key != "vlmdoctor"}
    outside = {key: value for key, value in parsed.items() if key != "tool"}
    return {"outside": outside, "tool": others, "vlmdoctor": rest}
