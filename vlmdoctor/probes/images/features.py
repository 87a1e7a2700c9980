"""Catching what goes into the first decoder layer, with the batch's images and with others."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.forward import Forward
from vlmdoctor.evidence.image_feature_scale import ImageFeatureScale
from vlmdoctor.knowledge.parameter_names import canonical_name, layer_of, role_of
from vlmdoctor.probes.batch.fields import Inputs
from vlmdoctor.probes.forward import passed
from vlmdoctor.probes.influence.passes import PassRunner, innermost
from vlmdoctor.probes.listening import Listening, Outcome
from vlmdoctor.probes.one_pass import observed
from vlmdoctor.sandbox.call import run, seed
from vlmdoctor.sandbox.restore import copy_of
from vlmdoctor.subject import Subject

FEWEST = 2  # places of each kind


def probe(subject: Subject, gather: Gatherer) -> ImageFeatureScale:
    """Catches what the first decoder layer is given in the one pass, and once more with other images."""
    passed(gather, finite=True)
    return observed(gather, "vlmdoctor.probes.images.features")


def observer(subject: Subject, gather: Gatherer) -> DecoderInput:
    """Catches what goes into the decoder; raises `Unavailable` for a batch without images beside ids."""
    return DecoderInput(subject)


class DecoderInput:
    """What the first decoder layer is given, and what of it moves with the images."""

    def __init__(self, subject: Subject) -> None:
        self._subject, self._model = subject, innermost(subject.model)
        self._inputs = inputs = Inputs(self._model, subject.batch, apart=subject.loss_fn is not None)
        if inputs.ids is None or inputs.reads_labels or not inputs.images:
            raise Unavailable("the batch holds no images beside token ids")
        self._rows, self._length = inputs[inputs.ids].shape

    def attach(self, listening: Listening) -> None:
        """Asks for what decoder layers are given."""
        self._caught: tuple[str, torch.Tensor] | None = None
        for name, module in _decoder_layers(self._model):
            listening.before(module, functools.partial(self._catch, name))

    def _catch(self, name: str, module: nn.Module, given: tuple, keywords: dict[str, Any]) -> None:
        hidden = None if self._caught else _hidden(given, keywords, self._rows, self._length)
        if hidden is not None:
            self._caught = name, hidden

    def conclude(self, outcome: Outcome, forward: Forward) -> ImageFeatureScale:
        """Compares the sizes of what moves with the images and of what does not."""
        if forward.finite is False:
            raise Unavailable("the forward pass gives NaN or infinity")
        if self._caught is None:
            raise Unavailable("the first layer of the language model was not found")
        name, own = self._caught
        other = self._with_other_images()
        if own.shape != other.shape:
            raise Unavailable("other images give a sequence of another length")
        moved = (own != other).any(dim=-1)
        valid = torch.ones_like(moved)
        valid[:, own.shape[1] - self._length :] = self._inputs.valid.to(moved.device)
        sizes = own.float().square().mean(dim=-1).sqrt()
        image, text = sizes[moved & valid], sizes[~moved & valid]
        if len(image) < FEWEST or len(text) < FEWEST:
            raise Unavailable("no places of the first decoder layer belong to images alone")
        return ImageFeatureScale(
            module=name,
            image_places=len(image),
            text_places=len(text),
            image_size=float(image.median()),
            text_size=float(text.median()),
        )

    def _with_other_images(self) -> torch.Tensor:
        subject, inputs = self._subject, self._inputs
        changed = inputs.with_(**{each: _noise(inputs[each]) for each in inputs.images})
        runs = self._model if subject.loss_fn is None else subject.model

        def again() -> None:
            seed(0)  # what is dropped is the same as in the pass before
            run(runs, copy_of(changed), subject.loss_fn)

        try:
            return _entering(self._model, again, self._rows, self._length)[1]
        except Unavailable:
            raise
        except Exception as error:
            raise Unavailable(f"with other images it raises {type(error).__name__}") from error


class _Seen(Exception):
    """What was looked for is there: the rest of the pass tells nothing more."""


def entering(trials: PassRunner, batch: Any = None) -> tuple[str, torch.Tensor]:
    """(name, input [B, T, D]) of the first block of the language model that runs; the pass ends there."""
    rows, length = trials.inputs[trials.inputs.ids].shape
    return _entering(trials.model, lambda: trials.run(batch), rows, length)


def _entering(model: nn.Module, runs: Callable[[], Any], rows: int, length: int) -> tuple[str, torch.Tensor]:
    caught: list[tuple[str, torch.Tensor]] = []

    def hook(name: str, module: nn.Module, given: tuple, keywords: dict[str, Any]) -> None:
        if (hidden := _hidden(given, keywords, rows, length)) is not None:
            caught.append((name, hidden))
            raise _Seen

    with contextlib.ExitStack() as hooks:
        for name, module in _decoder_layers(model):
            handle = module.register_forward_pre_hook(functools.partial(hook, name), with_kwargs=True)
            hooks.callback(handle.remove)
        with contextlib.suppress(_Seen):
            runs()
    if not caught:
        raise Unavailable("the first layer of the language model was not found")
    return caught[0]


def _decoder_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """By canonical name, all that is a layer of its own and of no vision tower."""
    for raw_name, module in model.named_modules():
        name = canonical_name(f"{raw_name}.").rstrip(".")
        layer, _ = layer_of(name)
        if layer == name and role_of(name) not in ("vision", "projector", "head"):
            yield name, module


def _hidden(given: tuple, keywords: dict[str, Any], rows: int, length: int) -> torch.Tensor | None:
    """A copy of the activations among a layer's arguments."""
    values = (value for value in (*given, *keywords.values()) if _is_hidden(value, rows, length))
    return next((value.detach().clone() for value in values), None)


def _is_hidden(value: Any, rows: int, length: int) -> bool:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.ndim != 3:
        return False
    return value.shape[0] == rows and value.shape[1] >= length


def _noise(images: torch.Tensor) -> torch.Tensor:
    """Noise as bright and as varied as the images; what is empty (padding, a stand-in) stays empty."""
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(3)).to(images.device)
    known = images.float()
    noise = known.mean() + drawn * known.std().clamp(min=1e-3)
    return torch.where(known == 0, known, noise).to(images.dtype)
