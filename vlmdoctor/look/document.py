"""Samples as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vlmdoctor import __version__
from vlmdoctor.finding import plain
from vlmdoctor.look.findings import data_findings
from vlmdoctor.look.samples import Look
from vlmdoctor.look.summary import shares, stop_line
from vlmdoctor.reporters.json import as_json

if TYPE_CHECKING:
    from vlmdoctor.evidence.data import Data, Row


def render(looks: Sequence[Look], data: Data, target: str) -> str:
    """One JSON object; placeholders and padding are folded to one token with a count."""
    rows = [look.row for look in looks]
    document = {
        "schema_version": 1,
        "tool": {"name": "vlmdoctor", "version": __version__},
        "command": "look",
        "target": target,
        "samples": [_sample(look) for look in looks],
        "shares": _shares(rows),
        "findings": [finding.to_dict() for finding in data_findings(data)],
        "stop": stop_line(rows, data),
        "roles_unknown": data.roles_unknown,
        "vocabulary": vars(data.words) | {"names": {str(i): name for i, name in data.words.names}},
        "pictures": [vars(picture) | {"fits": dict(picture.fits)} for picture in data.pictures],
    }
    return as_json(plain(document), ensure_ascii=False)


def _sample(look: Look) -> dict[str, Any]:
    row = look.row
    return {
        "name": row.name,
        "origin": row.origin,
        "turns": [
            {
                "speaker": turn.speaker,
                "tokens": [
                    {"id": t.id, "text": t.text, "role": t.role, "supervised": t.supervised, "count": t.count}
                    for t in turn.tokens
                ],
            }
            for turn in look.turns
        ],
        "shares": _shares([row]),
        "images": [{"width": image.width, "height": image.height} for image in look.images],
        "notes": list(look.notes),
    }


def _shares(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    return {share.role: {"tokens": share.tokens, "supervised": share.supervised} for share in shares(rows)}
