"""Running a model on changed copies of a batch, and measuring which logits move."""

from __future__ import annotations

import contextlib
import inspect
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from vlmdoctor import subject as subjects
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.probes.batch.fields import Inputs
from vlmdoctor.probes.loss.calls import LossCall, token_losses, watched_losses
from vlmdoctor.sandbox import call as invoke
from vlmdoctor.sandbox.call import call, logits_in, loss_in
from vlmdoctor.sandbox.restore import copy_of
from vlmdoctor.subject import Subject

# Columns of the vocabulary that are kept: what moves one logit moves nearly all of a position.
COLUMNS = 512
_EXPERTS = re.compile(r"moe|expert|router", re.IGNORECASE)


@dataclass(frozen=True)
class PassOutput:
    """What a forward pass gave: logits [B, T, C] of the text's positions (thinned out), and the loss."""

    logits: torch.Tensor | None
    loss: float | None


class PassRunner:
    """Forward passes of one subject, each with the same random numbers; use inside `unchanged`.

    Attributes:
        model: The model without compilation and data-parallel wrappers.
        inputs: The user's batch.
        listens: Whether the next pass listens to the losses that are called in it.
        seconds: How long the first pass took.
        unseen: How many logits at the end of each row were never seen, since the loss takes none there.
        targets: What the loss compares with, [B, T], `IGNORE_INDEX` where there is nothing; None where not
            seen.
        ignored: The label that the loss leaves out; None where no loss was seen.

    Args:
        notes_types: Look at the float types that modules give out in the first pass, for `epsilon`.
    """

    def __init__(self, subject: Subject, *, notes_types: bool = False) -> None:
        self.model = innermost(subject.model)
        self._notes_types = notes_types
        self.inputs = Inputs(self.model, subject.batch, apart=subject.loss_fn is not None)
        self._subject = subject
        self._vocabulary = subjects.vocab_size(self.model)
        # Families that tell the prompt from the answer by token types look both ways in the prompt, and
        # some take everything for the prompt unless they train. All else is as in evaluation: attention may
        # drop weights by itself, and hooks add noise (NEFTune).
        types = {name for name in self.inputs.fields if name.endswith("token_type_ids")}
        for module in self.model.modules():
            module.training = bool(types) and _takes(module, types)
        self.listens = True
        self.seconds = 0.0
        self.unseen = 0
        self.targets: torch.Tensor | None = None
        self.ignored: int | None = None
        self._seen_types: set[torch.dtype] = set()

    def run(self, batch: Any = None, seed: int = 0) -> PassOutput:
        """One pass on `batch`, by default the user's."""
        model, loss_fn = self.model, self._subject.loss_fn
        batch = copy_of(self._subject.batch if batch is None else batch)
        outputs: list[Any] = []
        started = time.perf_counter()
        invoke.seed(seed)
        with torch.no_grad(), warnings.catch_warnings(), self._heard() as calls, self._types_noted():
            warnings.simplefilter("ignore")
            if loss_fn is None:
                outputs.append(call(model, batch))
                loss = loss_in(outputs[0])
            else:
                with _hooked(model, lambda module, inputs, output: outputs.append(output)):
                    loss = loss_in(loss_fn(model, batch))
        self.seconds = self.seconds or time.perf_counter() - started
        logits = own = self._logits(outputs[-1]) if outputs else None
        seen = token_losses(calls, self.inputs[self.inputs.ids] if self.inputs.ids else None)
        if seen:
            self.inputs.ignored = self.ignored = seen[0].ignored
        if len(seen) == 1:
            logits = self._compared(seen[0]) if logits is None else logits
            self.targets = self._targets(seen[0]) if self.targets is None else self.targets
        self.listens = self.listens and (own is None or self.targets is None)
        return PassOutput(logits, None if loss is None else float(loss.detach()))

    def _heard(self) -> contextlib.AbstractContextManager[list[LossCall]]:
        """The calls of losses, while they can tell something: listening costs a fifth of a pass."""
        return watched_losses() if self.listens else contextlib.nullcontext([])

    @contextlib.contextmanager
    def _types_noted(self) -> Iterator[None]:
        """The float types that modules give out: under autocast they are coarser than weights and logits."""
        with contextlib.ExitStack() as hooks:
            for module in self.model.modules() if self._notes_types and not self.seconds else ():
                hooks.enter_context(_hooked(module, self._note))
            yield

    def _note(self, module: nn.Module, given: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.is_floating_point():
            self._seen_types.add(output.dtype)

    def jittered(self) -> PassOutput:
        """A pass whose token embeddings are off by one rounding: how far rounding carries in this model."""

        def jitter(module: nn.Module, inputs: Any, output: Any) -> Any:
            if not isinstance(output, torch.Tensor) or not output.is_floating_point():
                return output
            generator = torch.Generator().manual_seed(1)
            signs = torch.randint(0, 2, output.shape, generator=generator).to(output) * 2 - 1
            return output * (1 + signs * self.epsilon)

        with contextlib.ExitStack() as hooks:
            for module in self.model.modules():
                if isinstance(module, nn.Embedding):
                    hooks.enter_context(_hooked(module, jitter))
            return self.run()

    @property
    def epsilon(self) -> float:
        """The relative rounding of the coarsest float type among the weights and what modules gave out."""
        kinds = {p.dtype for p in self.model.parameters() if p.is_floating_point() and p.element_size() > 1}
        kinds |= self._seen_types
        return max((torch.finfo(kind).eps for kind in kinds), default=torch.finfo(torch.float32).eps)

    @property
    def has_experts(self) -> bool:
        """Whether tokens are grouped by experts, so that others change the order of its additions."""
        return any(_EXPERTS.search(type(module).__name__) for module in self.model.modules())

    def _compared(self, seen: LossCall) -> torch.Tensor | None:
        """[B, T, C]: what the loss was given, where the model keeps its logits to itself."""
        rows, length = self.inputs[self.inputs.ids].shape
        each, rest = divmod(len(seen.targets), rows)
        if rest or each < length - 1 or seen.rows not in (None, rows):
            return None
        self.unseen = int(each == length - 1)  # the last one foretells nothing that is in the batch
        scores = seen.scores[..., :: self._step(seen.scores)].unflatten(0, (rows, each))
        self._seen_types.add(scores.dtype)
        return functional.pad(scores, (0, 0, 0, self.unseen))

    def _targets(self, seen: LossCall) -> torch.Tensor | None:
        rows, length = self.inputs[self.inputs.ids].shape
        missing = rows * length - len(seen.targets)
        if missing not in (0, rows):
            return None
        targets = seen.targets.masked_fill(seen.targets == seen.ignored, IGNORE_INDEX)
        return functional.pad(targets.unflatten(0, (rows, -1)), (0, missing // rows), value=IGNORE_INDEX)

    def _step(self, logits: torch.Tensor) -> int:
        return max(1, logits.shape[-1] // COLUMNS)

    def _logits(self, output: Any) -> torch.Tensor | None:
        ids = self.inputs[self.inputs.ids] if self.inputs.ids else None
        if ids is None:
            return None
        logits = logits_in(output)
        if logits is None:
            values = output.values() if isinstance(output, Mapping) else output
            values = [values] if isinstance(values, torch.Tensor) else values
            found = [v for v in values if _could_be(v, ids)] if isinstance(values, tuple | list) else []
            exact = [v for v in found if v.shape[-1] == self._vocabulary]
            logits = next(iter(exact or (found if len(found) == 1 else ())), None)
        if logits is None or not logits.is_floating_point():
            return None
        if logits.ndim == 2 and logits.shape[0] == ids.numel():
            logits = logits.unflatten(0, tuple(ids.shape))
        if logits.ndim != 3 or logits.shape[0] != ids.shape[0]:
            return None
        # A loss function may give the model all but the last token, which foretells nothing.
        self.unseen = int(self._subject.loss_fn is not None and logits.shape[1] == ids.shape[1] - 1)
        if self.unseen:
            logits = functional.pad(logits, (0, 0, 0, 1))
        self._seen_types.add(logits.dtype)
        return logits.detach()[..., :: self._step(logits)].clone()


def _takes(module: nn.Module, names: set[str]) -> bool:
    try:
        return bool(names & set(inspect.signature(module.forward).parameters))
    except (TypeError, ValueError):  # compiled to a script
        return False


def innermost(model: nn.Module) -> nn.Module:
    """The model inside torch.compile and (distributed) data parallelism."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def distances(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """[B, T]: how far the logits of each position are apart; equal infinities are not apart."""
    apart = (one.float() - other.float()).abs()
    return torch.where(one == other, torch.zeros_like(apart), apart).nan_to_num(nan=torch.inf).amax(dim=-1)


def _could_be(value: Any, ids: torch.Tensor) -> bool:
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        return False
    if value.ndim == 2:
        return value.shape[0] == ids.numel() and ids.shape[0] > 1
    return value.ndim == 3 and value.shape[0] == ids.shape[0] and value.shape[1] >= ids.shape[1] - 1


@contextlib.contextmanager
def _hooked(module: nn.Module, hook: Any) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
