"""Which parameters there are, which are meant to learn, and which the optimizer holds."""

from __future__ import annotations

from collections.abc import Callable

from vlmdoctor import contract as contracts
from vlmdoctor import subject as subjects
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.parameters import Parameter, Parameters
from vlmdoctor.knowledge import parameter_names
from vlmdoctor.subject import Subject


def probe(subject: Subject, gather: Callable[[type], object]) -> Parameters:
    """Lists the parameters of `subject.model`; reads names, shapes and flags only."""
    model = getattr(subject, "model", None)
    if model is None:
        raise Unavailable("no model was given")
    optimizers = subjects.optimizers(subject.optimizer)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held: dict[int, int] = {}
    rates: dict[int, float] = {}
    for group in groups:
        for tensor in group["params"]:
            held[id(tensor)] = held.get(id(tensor), 0) + 1
            if group.get("lr") is not None:  # Adafactor may choose it itself
                rates[id(tensor)] = float(group["lr"])
    patterns = None if subject.trainable is None else subjects.compile_patterns(subject.trainable)

    # A tied parameter counts as declared under any of its names: `lm_head` is no stale pattern then.
    all_names: dict[int, list[str]] = {}
    for raw_name, tensor in model.named_parameters(remove_duplicate=False):
        all_names.setdefault(id(tensor), []).append(parameter_names.canonical_name(raw_name))

    found, own = [], set()
    matched: set[str] = set()
    for raw_name, tensor in model.named_parameters():
        own.add(id(tensor))
        name = parameter_names.canonical_name(raw_name)
        layer, depth = parameter_names.layer_of(name)
        wanted = None
        if patterns is not None:
            names = all_names[id(tensor)]
            hits = [text for text, pattern in patterns.items() if any(map(pattern.search, names))]
            matched.update(hits)
            wanted = bool(hits)
        found.append(
            Parameter(
                name=name,
                role=parameter_names.role_of(name),
                layer=layer,
                depth=depth,
                # A lazy one has none yet.
                shape=() if hasattr(tensor, "materialize") else tuple(tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
                requires_grad=tensor.requires_grad,
                wanted=wanted,
                in_optimizer=held.get(id(tensor), 0) if optimizers else None,
                lr=rates.get(id(tensor)),
            )
        )
    if patterns is None and (terms := getattr(subject, "contract", None)):
        found = contracts.declared(found, terms)
    return Parameters(
        parameters=tuple(found),
        adapters=any(".lora_" in p.name or "lora_embedding" in p.name for p in found),
        vocab_size=subjects.vocab_size(model),
        foreign=sum(1 for identity in held if identity not in own),
        unmatched=tuple(text for text in patterns or () if text not in matched),
    )
