"""Where in a model something gets through that must not, and whether a causal mask would stop it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from vlmdoctor.knowledge.parameter_names import canonical_name
from vlmdoctor.probes.failure.traceback import modules_by_name
from vlmdoctor.probes.influence.baseline import Baseline
from vlmdoctor.probes.influence.passes import distances


def leaking_place(reference: Baseline, changed: Any, where: torch.Tensor) -> str | None:
    """The first place where values at `where` [B, T] are not the same as ever: a module, or its input."""
    before = _sums(reference, None, where)
    after = _sums(reference, changed, where)
    for name, (given, made) in after.items():
        known = before.get(name)
        if known is not None and given and known[0] == given and known[1] != made:
            return name
    # Between modules, in the forward of one that contains them.
    moved = (name for name, (given, _) in after.items() if given and before.get(name, (given,))[0] != given)
    return next((f"the input of {name}" for name in moved), None)


def classes_of(model: nn.Module, place: str | None) -> tuple[tuple[str, str], ...]:
    """(name, qualified class) of the modules around the one of this name, and of itself, outermost first."""
    names = modules_by_name(model)
    parts = (place or "").removeprefix("the input of ").split(".")
    found = []
    for count in range(1, len(parts) + 1):
        module = names.get(name := ".".join(parts[:count]))
        if module is not None:
            kind = type(module)
            package = "torch.nn" if kind.__module__.startswith("torch.nn.") else kind.__module__
            found.append((name, f"{package}.{kind.__qualname__}"))
    return tuple(found)


def moved_with_causal_mask(reference: Baseline, changed: Any, where: torch.Tensor) -> float | None:
    """How far logits move where torch's attention is made causal; None where the model doesn't use it."""
    length = reference.logits.shape[1]
    with _causal(length) as used:
        one, other = reference.trials.run(), reference.trials.run(changed)
    if not used or one.logits is None or other.logits is None:
        return None
    return float(distances(reference.text(one.logits), reference.text(other.logits)).cpu()[where].max())


def _sums(reference: Baseline, batch: Any, where: torch.Tensor) -> dict[str, tuple[tuple, tuple]]:
    """For each module, in the order in which they end: sums of its inputs and of its outputs at `where`."""
    found: dict[str, tuple[tuple, tuple]] = {}
    rows, length = where.shape

    def kept(value: torch.Tensor) -> torch.Tensor | None:
        """[B, L]: the places in a sequence that may have features in front, or lack what is not predicted."""
        more = value.shape[1] - length
        if value.shape[0] != rows or more < -reference.trials.unseen:
            return None
        return functional.pad(where, (more, 0)) if more > 0 else where[:, : length + more]

    def of(values: Any) -> tuple:
        values = values.values() if isinstance(values, dict) else values
        values = values if isinstance(values, tuple | list) else (values,)
        whole = [v for v in values if isinstance(v, torch.Tensor) and v.ndim == 3 and v.is_floating_point()]
        placed = [(v, places) for v in whole if (places := kept(v)) is not None]
        kept_values = [v[places.to(v.device)].double() for v, places in placed]
        return tuple((float(v.sum()), float(v.square().sum())) for v in kept_values)

    with contextlib.ExitStack() as hooks:
        for raw_name, module in reference.trials.model.named_modules():
            name = canonical_name(raw_name + ".").rstrip(".") or type(module).__name__

            def hook(
                _: nn.Module, given: tuple, keywords: dict[str, Any], output: Any, name: str = name
            ) -> None:
                found[name] = (of((*given, *keywords.values())), of(output))

            hooks.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        reference.trials.run(batch)
    return found


@contextlib.contextmanager
def _causal(length: int) -> Iterator[list[bool]]:
    """Attention over a sequence of `length` looks back only; yields a list that is filled if it met any.

    Met are torch's own attention, and the softmax over square scores of attention that is written out.
    """
    attention = functional.scaled_dot_product_attention
    used: list[bool] = []

    def back_only(device: torch.device) -> torch.Tensor:
        used.append(True)
        return torch.ones(length, length, dtype=torch.bool, device=device).tril()

    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *rest: Any, **options: Any
    ) -> Any:
        if query.shape[-2] != length or key.shape[-2] != length:
            return attention(query, key, value, *rest, **options)
        causal = back_only(query.device)
        options |= dict(zip(("attn_mask", "dropout_p", "is_causal"), rest, strict=False))
        mask = options.pop("attn_mask", None)
        options.pop("is_causal", None)
        if mask is None:
            mask = causal
        elif mask.dtype == torch.bool:
            mask = mask & causal
        else:
            mask = mask.masked_fill(~causal, torch.finfo(mask.dtype).min)
        return attention(query, key, value, attn_mask=mask, **options)

    def weighing(softmax: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def weigh(scores: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
            axis = options.get("dim", rest[0] if rest else None)
            if axis in (-1, scores.ndim - 1) and scores.shape[-2:] == (length, length):
                scores = scores.masked_fill(~back_only(scores.device), torch.finfo(scores.dtype).min)
            return softmax(scores, *rest, **options)

        return weigh

    owners: tuple[Any, ...] = (functional, torch, torch.Tensor)
    own = [vars(owner).get("softmax") for owner in owners]
    fast = torch.backends.mha.get_fastpath_enabled()
    # torch's fused encoder layer goes past the functions that are exchanged here.
    torch.backends.mha.set_fastpath_enabled(False)
    functional.scaled_dot_product_attention = attend
    for owner in owners:
        owner.softmax = weighing(owner.softmax)
    try:
        yield used
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        functional.scaled_dot_product_attention = attention
        for owner, softmax in zip(owners, own, strict=True):
            if softmax is None:  # it was inherited
                del owner.softmax
            else:
                owner.softmax = softmax
