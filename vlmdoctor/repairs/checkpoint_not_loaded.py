"""Loads the checkpoint under the names that match, and measures the loss with its weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.checkpoint import Checkpoint, Weight
from vlmdoctor.finding import Finding
from vlmdoctor.knowledge.parameter_names import plain_name
from vlmdoctor.probes.checkpoint.files import open_checkpoint
from vlmdoctor.proof.prove import Attempt
from vlmdoctor.proof.workbench import Workbench

DEPTH = "forward"
COPIES = True
OF_PARAMETERS = False


def apply(bench: Workbench, finding: Finding, gather: Gatherer) -> Attempt:
    """Every tensor of the checkpoint that has the shape of its parameter."""
    known: Checkpoint = gather(Checkpoint)
    given = getattr(gather.subject, "checkpoint", None)
    found = {w.name: w for w in known.weights if w.key is not None and w.key_shape == w.shape}
    if not found:
        raise Unavailable("no tensor of the checkpoint matches one of the model's")
    before = _loss(bench)
    loaded = []
    with open_checkpoint(given) as files, torch.no_grad():
        for raw_name, parameter in bench.model.named_parameters():
            weight = found.get(plain_name(raw_name))
            if weight is not None and weight.key is not None:
                parameter.copy_(files.whole(weight.key).to(parameter))
                loaded.append(weight)
    after = _loss(bench)
    return Attempt(
        f"{len(loaded)} of the model's {len(known.weights)} tensors loaded{_how(loaded)}, and the loss goes "
        f"from {before:.4g} to {after:.4g}"
    )


def _loss(bench: Workbench) -> float:
    with torch.no_grad():
        return float(bench.loss())


def _how(loaded: Sequence[Weight]) -> str:
    """How the names were changed to match."""
    pairs = Counter(w.renamed for w in loaded if w.renamed is not None).most_common(2)
    said = []
    for (theirs, ours), _ in pairs:
        if theirs and ours:
            said.append(f"'{ours}' instead of '{theirs}'")
        else:
            said.append(f"'{theirs}' removed" if theirs else f"'{ours}' added")
    return f" with {' and '.join(said)}" if said else ""
