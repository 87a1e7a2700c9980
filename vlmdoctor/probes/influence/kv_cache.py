"""The last tokens decoded one by one with the cache: their logits are those of one pass over all of them."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.probes.influence.baseline import Baseline, change
from vlmdoctor.probes.influence.passes import COLUMNS, distances
from vlmdoctor.probes.influence.tokens import Results
from vlmdoctor.sandbox.call import logits_in
from vlmdoctor.sandbox.restore import copy_of

DECODED = 3
_CACHES = ("past_key_values", "kv_cache", "past_key_value", "past_kv", "past", "cache")
_PLACES = ("position", "offset", "start_pos", "cache_pos", "cur_pos", "step")
_SHARE = 2e-4  # of the largest logit: sums in another order leave a hundredth of it
_RECURRENT = (
    "mamba",
    "rwkv",
    "lstm",
    "recurrent",
    "ssm",
    "deltanet",
    "hyena",
    "lightning",
    "linearattention",
)


def decode_with_the_cache(reference: Baseline) -> Results:
    """Everything but a few tokens in one pass, and those one by one with what it left in the cache."""
    reference.need_logits()
    inputs, model = reference.inputs, reference.trials.model
    if inputs.reads_labels or inputs.ids == "decoder_input_ids":
        raise Unavailable("an encoder-decoder keeps two caches")
    if inputs.packed() is not None:
        raise Unavailable("several samples share a row, which is never decoded")
    ids = inputs[inputs.ids]
    cut = ids.shape[1] - DECODED
    rows = reference.valid[:, cut - 1 :].all(dim=1) if cut > 0 else torch.zeros(len(ids), dtype=torch.bool)
    if not rows.any():
        raise Unavailable("the rows are too short, or end in padding")
    if any(int(token) in reference.placeholders for token in ids[:, cut:].flatten()):
        raise Unavailable("the last tokens stand for an image")
    base = getattr(model, "get_base_model", lambda: model)()
    if getattr(base, "can_generate", lambda: False)():
        decoded: _Generated | _Stepped = _Generated(reference, base, cut)
    else:
        decoded = _Stepped(reference, cut)
    for module in model.modules():
        module.training = False
    whole = reference.text(reference.logits)[:, cut - 1 : cut - 1 + DECODED]
    with _quietly(), torch.no_grad():
        apart = distances(decoded.run(cached=True), whole).cpu()
        names = " ".join({type(module).__name__.lower() for module in model.modules()})
        loose = 10 if any(part in names for part in _RECURRENT) or reference.trials.has_experts else 1
        allowed = loose * max(4 * reference.rounded, _SHARE * reference.scale)
        if float(apart[rows].max()) > allowed:
            without = distances(decoded.run(cached=False), whole).cpu()
            if float(without[rows].max()) > allowed:
                raise Unavailable("decoding without the cache gives other logits than one pass, too")
    every = torch.zeros_like(reference.valid)
    every[rows, cut - 1 : cut - 1 + DECODED] = True
    moved = torch.zeros(every.shape)
    moved[:, cut - 1 : cut - 1 + DECODED] = apart
    first = next((step for step in range(DECODED) if float(apart[rows, step].max()) > allowed), None)
    what = f"the last {DECODED} tokens decoded with the cache"
    yield (
        "cache",
        change(what, moved, every, allowed, None, first=first, scale=reference.scale, by=decoded.by),
    )


class _Generated:
    """Decoding by `generate` of transformers, with the batch's own tokens forced."""

    by = "generate"

    def __init__(self, reference: Baseline, model: Any, cut: int) -> None:
        self.reference, self.model, self.cut = reference, model, cut
        if not isinstance(reference.subject.batch, Mapping):
            raise Unavailable("generate takes the batch by names")
        shape = reference.inputs[reference.inputs.ids].shape
        if any(
            getattr(v, "ndim", 0) == 4 and v.shape[-1] == shape[1] for v in reference.inputs.fields.values()
        ):
            raise Unavailable("the batch brings a finished attention mask")
        self.prompt = {
            name: value[:, :cut] if getattr(value, "shape", ())[:2] == shape else value
            for name, value in reference.inputs.fields.items()
            if name not in (reference.inputs.labels, "position_ids", "use_cache")
        }

    def run(self, *, cached: bool) -> torch.Tensor:
        """[B, DECODED, C]: the logits before each of the last tokens."""
        from transformers import GenerationConfig, LogitsProcessor

        ids, cut = self.reference.inputs[self.reference.inputs.ids], self.cut

        class Forced(LogitsProcessor):
            step = 0

            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                forced = torch.full_like(scores, -torch.inf)
                forced.scatter_(1, ids[:, cut + self.step, None].to(scores.device), 0.0)
                self.step += 1
                return forced

        config = GenerationConfig(
            max_new_tokens=DECODED,
            do_sample=False,
            num_beams=1,
            use_cache=cached,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        stops = self.model.generation_config.eos_token_id
        self.model.generation_config.eos_token_id = None
        try:
            out = self.model.generate(
                **copy_of(self.prompt), generation_config=config, logits_processor=[Forced()]
            )
        finally:
            self.model.generation_config.eos_token_id = stops
        if len(out.logits) != DECODED:
            raise Unavailable("generate stopped early")
        return _thinned(torch.stack(list(out.logits), dim=1))


class _Stepped:
    """Decoding by hand, with a model whose forward takes a cache and `use_cache`, and returns the cache."""

    by = "forward"

    def __init__(self, reference: Baseline, cut: int) -> None:
        self.reference, self.cut = reference, cut
        self.parameters = inspect.signature(reference.trials.model.forward).parameters
        names = [name for name in _CACHES if name in self.parameters]
        if len(names) != 1 or "use_cache" not in self.parameters:
            raise Unavailable("the model's forward takes no cache")
        self.cache = names[0]
        if any(place in name for name in self.parameters for place in _PLACES):
            raise Unavailable("which positions its forward wants beside a cache is not known")
        inputs = reference.inputs
        mask = inputs.fields.get(inputs.mask) if inputs.mask else None
        if mask is not None and not bool(mask.bool().all()):
            raise Unavailable("whether its forward wants the mask of all tokens beside a cache is not known")
        keep = {inputs.ids, *inputs.images}
        self.rest = {n: v for n, v in inputs.fields.items() if n in keep}
        for name, parameter in self.parameters.items():
            if name in inputs.fields and name not in keep and parameter.default is parameter.empty:
                raise Unavailable(f"its forward needs {name}")

    def run(self, *, cached: bool) -> torch.Tensor:
        """[B, DECODED, C]: the logits before each of the last tokens."""
        model, name = self.reference.trials.model, self.reference.inputs.ids
        assert name is not None  # or there would be no logits of tokens
        ids = self.rest[name]
        if not cached:
            return self._logits(model(**copy_of(self.rest)))[:, self.cut - 1 : self.cut - 1 + DECODED]
        out = model(**copy_of({**self.rest, name: ids[:, : self.cut]}), use_cache=True)
        logits = [self._logits(out)[:, -1:]]
        if any(self.parameters[n].default is inspect.Parameter.empty for n in self.rest if n != name):
            raise Unavailable("its forward needs the images at every step")
        for step in range(self.cut, self.cut + DECODED - 1):
            given = {self.cache: self._left(out), "use_cache": True}
            out = model(**{name: ids[:, step : step + 1].clone()}, **given)
            logits.append(self._logits(out))
        return torch.cat(logits, dim=1)

    def _left(self, out: Any) -> Any:
        """The cache in what the model returned."""
        names = (self.cache, "past_key_values", "present", "presents", "cache")
        for name in names:
            found = out.get(name) if isinstance(out, Mapping) else getattr(out, name, None)
            if found is not None:
                return found
        others = (
            [v for v in out if not isinstance(v, torch.Tensor) and v is not None]
            if type(out) is tuple
            else []
        )
        if len(others) != 1:
            raise Unavailable("no cache was found in what its forward returns")
        return others[0]

    def _logits(self, out: Any) -> torch.Tensor:
        logits = logits_in(out)
        if logits is None and type(out) is tuple:
            found = [v for v in out if isinstance(v, torch.Tensor) and v.ndim == 3 and v.is_floating_point()]
            logits = found[0] if len(found) == 1 else None
        if logits is None:
            raise Unavailable("no logits were found in what its forward returns beside a cache")
        return _thinned(logits)


def _thinned(logits: torch.Tensor) -> torch.Tensor:
    return logits.detach()[..., :: max(1, logits.shape[-1] // COLUMNS)]


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what transformers says about the options of a generation that nobody asked for."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
