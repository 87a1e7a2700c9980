"""Finds the line that cuts the gradient's path by running the model without each candidate."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import NotProven
from vlmdoctor.finding import Finding, Fix
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.probes.failure.traceback import is_users, line_of, shown_path
from vlmdoctor.probes.gradient.detach_sites import Cut
from vlmdoctor.probes.gradient.detach_tracer import cuts_in, outputs_of, repaired
from vlmdoctor.proof.prove import Attempt, Measurement
from vlmdoctor.proof.workbench import Workbench

DEPTH = "backward"
COPIES = False
OF_PARAMETERS = True
# Each costs a forward and a backward pass.
MOST_TRIED = 6
_LIKELY = ("data", "no_grad", "checkpoint", "copy", "numbers", "detach")  # many detaches are for logging only

_DONE = {
    "detach": "the detach at {place} removed",
    "data": "the .data at {place} removed",
    "no_grad": "gradients enabled at {place}",
    "copy": "the tensor at {place} used instead of a new one",
    "numbers": "the tensor at {place} used instead of its numbers",
    "checkpoint": "the checkpoint at {place} run with use_reentrant=False",
}
_CAUSES = {
    "detach": "a detach cuts the path",
    "data": "writing through .data keeps no graph",
    "no_grad": "gradients are disabled there",
    "copy": "a new tensor is made from the numbers, which keeps no graph",
    "numbers": "the path goes through numpy or a list, which keep no graph",
    "checkpoint": "reentrant checkpointing gives no gradient where none of its inputs requires one",
}
_FIXES = {
    "detach": Fix("remove the detach"),
    "data": Fix(
        "write with masked_scatter or torch.where instead of through .data",
        ("x = x.masked_scatter(mask[..., None], features)",),
    ),
    "no_grad": Fix("run it with gradients, or freeze those parameters if they should not learn"),
    "copy": Fix("use the tensor itself, or torch.stack and torch.cat"),
    "numbers": Fix("pass the tensor itself, and use torch's functions instead of numpy's"),
    "checkpoint": Fix(
        "use use_reentrant=False, or make the inputs require gradients",
        ('gradient_checkpointing_kwargs={"use_reentrant": False}', "model.enable_input_require_grads()"),
    ),
}


def apply(bench: Workbench, finding: Finding, gather: Gatherer) -> Attempt:
    """Removes the fewest cuts that let a gradient reach the finding's parameters."""
    wanted = set(finding.parameters)
    candidates = _candidates(bench)
    likely = sorted(candidates, key=lambda cut: _LIKELY.index(cut.kind))[:MOST_TRIED]
    chosen = _fewest(bench, likely, wanted)
    if not chosen:
        raise NotProven(_seen(bench, finding, len(likely)))
    bench.around.append(partial(repaired, chosen))
    return _told(bench, finding, chosen, candidates)


def measure(bench: Workbench, finding: Finding) -> Measurement:
    """How many of the tensors get a gradient."""
    wanted = set(finding.parameters)
    reached = bench.reached().names & wanted
    word = "tensor gets" if len(wanted) == 1 else "tensors get"
    return Measurement(f"{len(reached)} of {len(wanted)} {word} a gradient", 2 * len(reached) > len(wanted))


def _candidates(bench: Workbench) -> dict[Cut, nn.Module | None]:
    """The cuts on the path, and those that only appear once the first ones are removed."""
    with torch.enable_grad():
        found = cuts_in(bench.loss)
        with contextlib.suppress(Exception):  # a model may rest on a cut
            found |= cuts_in(bench.loss, found)
    return found


def _fewest(bench: Workbench, likely: Sequence[Cut], wanted: set[str]) -> tuple[Cut, ...]:
    """The cuts to remove: one if one is enough, several where a part is cut off in several places."""
    chosen: tuple[Cut, ...] = ()
    reached = 0
    for _ in likely:
        alone = {cut: _reached_without(bench, (*chosen, cut), wanted) for cut in likely if cut not in chosen}
        best = max(alone, key=lambda cut: alone[cut], default=None)
        if best is None or alone[best] <= reached:
            break
        chosen, reached = (*chosen, best), alone[best]
        if reached == len(wanted):
            return chosen
    # Where two cuts follow each other, removing one alone is not enough.
    if not chosen and _reached_without(bench, likely, wanted):
        return tuple(likely)
    return chosen


def _reached_without(bench: Workbench, cuts: Sequence[Cut], wanted: set[str]) -> int:
    bench.around.append(partial(repaired, tuple(cuts)))
    try:
        return len(bench.reached().names & wanted)
    except Exception:  # numpy refuses what has a gradient; a model may need a cut
        return 0
    finally:
        bench.around.pop()


def _seen(bench: Workbench, finding: Finding, tried: int) -> str:
    """What happens to the output of the last module that the finding is about."""
    with torch.enable_grad():
        outputs = outputs_of(bench.model, finding.parameters, bench.loss)
    name, output = list(outputs.items())[-1] if outputs else ("", "")
    met = f"removing the detaches and similar cuts on the path ({tried} tried) let no gradient through"
    if not tried:
        met = "no detach or similar cut was found on the path"
    if output == "never":
        return f"the forward pass never calls {name}"
    if output == "graph":
        return f"{name} runs and its output has a graph, but the loss does not depend on it; {met}"
    return f"{name} runs and its output has no graph; {met}" if output else met


def _told(
    bench: Workbench, finding: Finding, cuts: Sequence[Cut], met_in: Mapping[Cut, nn.Module | None]
) -> Attempt:
    done, causes = [], []
    names = {module: canonical_name(f"{name}.").rstrip(".") for name, module in bench.model.named_modules()}
    places = dict.fromkeys(name for cut in cuts if (name := names.get(met_in[cut])))
    for cut in cuts:
        place = f"{shown_path(cut.file)}:{cut.line}"
        code = line_of(cut.file, cut.line)
        if cut.function:
            done.append(f"gradients enabled in {cut.function}")
            causes.append(f"gradients are disabled around {cut.function} by its wrapper")
        else:
            done.append(_DONE[cut.kind].format(place=place))
            where = names.get(met_in[cut])
            causes.append(
                f"{_CAUSES[cut.kind]}{f' in {where}' if where else ''}: {code or 'source unknown'}  ({place})"
            )
    first = cuts[0]
    learned: dict[str, Any] = {"cause": "; ".join(causes), "fix": _FIXES[first.kind]}
    learned["at"] = tuple(dict.fromkeys((*places, *finding.at)))
    if is_users(first.file):  # the line of a library that was wrapped is not where the fault is
        learned |= {"file": shown_path(first.file), "line": first.line}
    return Attempt(" and ".join(done), learned)
