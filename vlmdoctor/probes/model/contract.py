"""What a run is meant to be, by its contract, and what it is, by what was given."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vlmdoctor.contract import PRECISIONS, ROLE_KEYS, state_seen
from vlmdoctor.evidence.contract_status import ContractStatus
from vlmdoctor.evidence.parameters import Parameter, Parameters
from vlmdoctor.knowledge.config_fields import image_token
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.probes.batch.fields import standard
from vlmdoctor.subject import Subject, optimizers
from vlmdoctor.watching.batch import count_images

_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|tok(en)?_emb\w*|wte|word_embeddings|shared)\.")


def probe(subject: Subject, gather: Callable[[type], Any]) -> ContractStatus:
    """Reads flags, learning rates and one batch's ids; runs nothing."""
    parameters: Parameters = gather(Parameters)
    seen = {role: _role(parameters.role(role), _rates(subject)) for role in ROLE_KEYS}
    seen["new-token-rows"] = _new_token_rows(parameters.role("language"))
    seen |= _batch_terms(subject)
    seen["precision"] = _precision(parameters.parameters, subject.training_args)
    seen["steps"] = _steps(subject.training_args)
    return ContractStatus(
        expected=dict(subject.contract or {}), seen={key: text for key, text in seen.items() if text}
    )


def inferred(agreement: ContractStatus) -> dict[str, str]:
    """The contract that what was seen would fulfil."""
    # Rows of new tokens is not known from the others, so that nobody is held to them unasked.
    return {key: text for key, text in agreement.seen.items() if key != "new-token-rows"}


def _rates(subject: Subject) -> dict[str, set[float]]:
    """Canonical name -> learning rates before any schedule."""
    names = {id(p): canonical_name(name) for name, p in subject.model.named_parameters()}
    rates: dict[str, set[float]] = {}
    for optimizer in optimizers(subject.optimizer):
        for group in optimizer.param_groups:
            rate = group.get("initial_lr", group.get("lr"))
            for parameter in group["params"]:
                if id(parameter) in names and rate is not None:
                    rates.setdefault(names[id(parameter)], set()).add(float(rate))
    return rates


def _role(part: Sequence[Parameter], rates: Mapping[str, set[float]]) -> str | None:
    state = state_seen(part)
    found = set().union(*(rates.get(p.name, set()) for p in part if p.requires_grad))
    return f"{state}, lr {next(iter(found)):g}" if len(found) == 1 else state


def _new_token_rows(part: Sequence[Parameter]) -> str | None:
    rows = [p for p in part if _EMBEDDING.search(p.name)]
    if not rows:
        return None
    return "train" if any(p.requires_grad for p in rows) else "frozen"


def _batch_terms(subject: Subject) -> dict[str, str | None]:
    batch = {} if subject.batch is None else standard(subject.model, subject.batch, subject.loss_fn)
    ids: Any = batch.get("input_ids")
    if getattr(ids, "ndim", 0) != 2:
        return {}
    config = getattr(subject.model, "config", None)
    token = image_token(config)
    terms: dict[str, str | None] = {"supervise": _supervised(subject, batch, ids, token)}
    images = count_images((batch,), {})
    if token is not None and images:
        count = int((ids == token).sum())
        # Images of several sizes take several numbers of tokens: no term to agree on.
        even = {int(row) for row in (ids == token).sum(1)} <= {0, count // images}
        if count and even and count % images == 0:
            terms["image-tokens"] = f"{count // images} per image"
    return terms


def _supervised(subject: Subject, batch: Mapping[str, Any], ids: Any, image_token: int | None) -> str | None:
    labels: Any = batch.get("labels")
    if getattr(labels, "shape", None) != ids.shape:
        return None
    counted = labels != IGNORE_INDEX
    # The last label that counts, of each row that has one.
    last = [int(row[chosen][-1]) for row, chosen in zip(labels, counted, strict=True) if bool(chosen.any())]
    own = _at_their_tokens(ids, labels)
    if own is None:
        return None  # nothing supervised, or labels that are no tokens of their row
    counted = own != IGNORE_INDEX
    text = ids == ids
    mask: Any = batch.get("attention_mask")
    if getattr(mask, "shape", None) == ids.shape:
        text = mask.bool()
    if image_token is not None:
        text = text & (ids != image_token)
    if bool(counted[:, 1:][text[:, 1:]].all()):
        return "everything"
    stops = _stop_tokens(subject)
    if not stops:
        # Nobody says what ends an answer; where all end alike, that does.
        return "assistant + stop" if len(last) > 1 and len(set(last)) == 1 else None
    return "assistant + stop" if set(last) <= stops else "assistant"


def _at_their_tokens(ids: Any, labels: Any) -> Any | None:
    """The labels at the places of the tokens that they are, also where they were given one ahead."""
    for ahead in (0, 1):
        own = labels.roll(ahead, dims=1)
        own[:, :ahead] = IGNORE_INDEX
        counted = own != IGNORE_INDEX
        if bool(counted.any()) and bool((own[counted] == ids[counted]).all()):
            return own
    return None


def _stop_tokens(subject: Subject) -> set[int]:
    """Ids that may end an answer; empty where nothing is known of them."""
    tokenizer = subject.tokenizer or getattr(subject.processor, "tokenizer", None)
    found: set[int] = set()
    config = getattr(subject.model, "config", None)
    owners = (tokenizer, config, getattr(config, "text_config", None))
    for owner in (*owners, getattr(subject.model, "generation_config", None)):
        value = getattr(owner, "eos_token_id", None)
        found.update(v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int))
    special = getattr(tokenizer, "all_special_ids", None)
    return found | set(special if isinstance(special, list) else ())


def _argument(training_args: Any, name: str) -> Any:
    if isinstance(training_args, Mapping):
        return training_args.get(name)
    return getattr(training_args, name, None)


def _precision(parameters: Iterable[Parameter], training_args: Any) -> str | None:
    for name in ("bf16", "fp16"):
        if _argument(training_args, name) is True:
            return name
    kinds = {PRECISIONS.get(p.dtype) for p in parameters if p.requires_grad}
    if len(kinds) != 1:
        return None
    kind = kinds.pop()
    # Weights in float32 may be meant for autocast, which nobody told us about.
    return kind if kind != "float32" or training_args is not None else None


def _steps(training_args: Any) -> str | None:
    steps = _argument(training_args, "max_steps")
    return str(steps) if isinstance(steps, int) and steps > 0 else None
