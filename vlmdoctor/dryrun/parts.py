"""What learns in each part, what gets no gradient and why, and how positions turn, as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.shapes import Shapes
from vlmdoctor.knowledge.parameter_names import ROLES
from vlmdoctor.subject import Subject

BY_DESIGN = "unused by design (beside or behind the features that are taken)"
NO_PATH = "no path leads to the loss"


def parts_of(model: Any, shapes: Shapes | None) -> dict[str, Any]:
    """Numbers by role (`parts`), and what gets no gradient, by layer (`idle`)."""
    from vlmdoctor.evidence.reach import reach_in_shapes
    from vlmdoctor.probes.model.parameters import probe

    parameters = probe(Subject(model), _nothing)
    missing = set(shapes.without_gradient) if shapes is not None else set()
    rows = []
    for role in ROLES:
        own = parameters.role(role)
        if own:
            rows.append(
                {
                    "role": role,
                    "tensors": len(own),
                    "parameters": sum(p.numel for p in own),
                    "trainable": sum(p.numel for p in own if p.requires_grad),
                    "without_gradient": sum(p.numel for p in own if p.name in missing),
                }
            )
    idle: dict[tuple[str, str], int] = {}
    if shapes is not None and missing:
        reach = reach_in_shapes(parameters, shapes)
        for p in reach.missing:
            why = BY_DESIGN if reach.reached and reach.unused_by_design(p) else NO_PATH
            place = (p.layer or p.name.rpartition(".")[0] or p.name, why)
            idle[place] = idle.get(place, 0) + 1
    return {
        "parts": rows,
        "idle": [{"at": at, "tensors": count, "why": why} for (at, why), count in idle.items()],
    }


def ropes_of(model: Any) -> list[dict[str, Any]]:
    """The rotary embeddings as the configuration sets them; empty where there is none to be read."""
    from vlmdoctor.probes.positions.rope_settings import probe

    try:
        return [asdict(rope) for rope in probe(Subject(model), _nothing).ropes]
    except Unavailable:
        return []


def _nothing(evidence_class: type) -> Any:
    raise Unavailable(f"{evidence_class.__name__} is not gathered here")
