"""A subject with its logits on the unchanged batch, against which those on changed batches are held."""

from __future__ import annotations

from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.influence import Change
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.probes.batch.fields import Inputs, placeholders
from vlmdoctor.probes.influence.passes import PassOutput, PassRunner, distances
from vlmdoctor.probes.loss.alignment import places_ahead
from vlmdoctor.subject import Subject

_SAME_SHAPE = 1e-5  # of the change's own effect: nothing that a real path would leave
_NO_IDS = "no token ids were found in the batch"
_NO_LOGITS = "no logits were found in the model's output, one row of them for each token"
# They look ahead, or depend on the length in blocks, by design.
_NOT_CAUSAL = ("xlm", "flaubert", "xlnet", "big_bird", "bigbird_pegasus", "reformer", "cpmant", "prophetnet")


class Baseline:
    """A subject with its logits on the unchanged batch, and how far rounding moves them."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.trials = PassRunner(subject, notes_types=True)
        self.inputs: Inputs = self.trials.inputs
        self.placeholders = placeholders(self.trials.model, subject.processor, subject.tokenizer)
        self.before: PassOutput = self.trials.run()
        again = self.trials.run()
        self.noise = self.rounding = self.scale = 0.0
        self._valid = None if self.inputs.ids is None else self.inputs.valid.cpu()
        if self._valid is not None and self.trials.unseen:
            self._valid = self._valid.clone()
            self._valid[:, -self.trials.unseen :] = False
        if self._valid is not None and not self._valid.any():
            raise Unavailable("the attention mask hides every token")
        self.offset = 0
        if self.before.logits is not None:
            # Where the model puts features in front of the text, its logits stand behind theirs.
            self.offset = self.before.logits.shape[1] - self.inputs[self.inputs.ids].shape[1]
            if self.offset < 0:
                self.before = PassOutput(None, self.before.loss)
        if self.before.logits is not None:
            logits = self.text(self.before.logits)[self.valid.to(self.before.logits.device)].float()
            if bool(logits.isnan().any()):
                raise Unavailable("the logits hold NaN")
            finite = logits[logits.isfinite()]
            self.scale = float(finite.abs().max()) if finite.numel() else 0.0
            self.noise = float(self.moved(again)[self.valid].max())
            self.rounding = float(self.moved(self.trials.jittered())[self.valid].max())
        if self.before.loss is not None and again.loss is not None and self.before.logits is None:
            self.noise = abs(self.before.loss - again.loss)
        if self.noise > 1e-3 * max(self.scale, 1e-30) and self.before.logits is not None:
            raise Unavailable("two passes over the same batch differ: the model draws numbers of its own")

    @property
    def valid(self) -> torch.Tensor:
        """[B, T] on the CPU: where there is a token and not padding; `Unavailable` where there are no ids."""
        if self._valid is None:
            raise Unavailable(_NO_IDS)
        return self._valid

    @property
    def logits(self) -> torch.Tensor:
        """Those of the unchanged batch; `Unavailable` where no token's logits are known."""
        if self.before.logits is None:
            raise Unavailable(_NO_LOGITS)
        return self.before.logits

    def with_ids(self, ids: torch.Tensor) -> Any:
        """The batch with other token ids."""
        if self.inputs.ids is None:
            raise Unavailable(_NO_IDS)
        return self.inputs.with_(**{self.inputs.ids: ids})

    def text(self, logits: torch.Tensor) -> torch.Tensor:
        """The logits of the text's positions."""
        return logits[:, self.offset :]

    def moved(self, seen: PassOutput, base: PassOutput | None = None) -> torch.Tensor:
        """[B, T] on the CPU: how far each position's logits are from those of `base`, the unchanged batch."""
        base = base or self.before
        if seen.logits is None or base.logits is None or seen.logits.shape != base.logits.shape:
            raise Unavailable("the changed batch gives logits of another shape")
        return distances(self.text(seen.logits), self.text(base.logits)).cpu()

    def still(self, effect: float) -> float:
        """What counts as not moved at all."""
        return max(10 * self.noise, _SAME_SHAPE * effect)

    def exact(self, effect: float) -> float:
        """What may move where a pass differs in values only, and not in shapes."""
        allowed = self.still(effect)
        if self.trials.has_experts:
            return max(allowed, 10 * self.rounding)
        # In half precision one rounding hides too much, and passes of one shape agree bit for bit there.
        return max(allowed, 2 * self.rounding) if self.trials.epsilon < 1e-6 else allowed

    @property
    def config(self) -> Any:
        """The model's configuration, or None."""
        return getattr(self.trials.model, "config", None)

    def setting(self, name: str) -> Any:
        """A setting of the model's text part: from its own configuration if there is one."""
        text = getattr(self.config, "text_config", None)
        return getattr(text, name, None) if text is not None else getattr(self.config, name, None)

    def predicting(self) -> torch.Tensor:
        """[B, T] on the CPU: where a logit is meant to predict the next token from those before it.

        Raises:
            Unavailable: The model is not meant to look back only, or that is not known.
        """
        model, inputs = self.trials.model, self.inputs
        generates = getattr(model, "can_generate", None)
        if generates is not None and (
            not generates() or getattr(self.config, "model_type", "") in _NOT_CAUSAL
        ):
            raise Unavailable("the model is not one that writes text from left to right")
        if inputs.reads_labels or inputs.ids == "decoder_input_ids":
            return self.valid
        if (known := inputs.predicting()) is not None:
            return known.cpu() & self.valid
        if inputs.labels is None and (targets := self.trials.targets) is not None:
            found = places_ahead(inputs[inputs.ids], targets)
            if found is not None and found[0] == 1:
                return (targets != IGNORE_INDEX).cpu() & self.valid
        if inputs.labels is None and generates is not None and "token_type_ids" not in inputs.fields:
            return self.valid
        raise Unavailable("the labels are not the next tokens, so that the model may be meant to look ahead")

    @property
    def rounded(self) -> float:
        """What may move where shapes differ, and with them the order of additions."""
        return max(10 * self.noise, 20 * self.rounding, 16 * self.trials.epsilon * self.scale)

    def need_no_draws(self) -> None:
        """Raises `Unavailable` where random numbers are part of a pass: another length draws other ones."""
        if float(self.moved(self.trials.run(seed=1))[self.valid].max()) > self.rounded:
            raise Unavailable("the model draws random numbers, which are others for another length")

    def need_logits(self) -> None:
        """Raises `Unavailable` where no token's logits are known."""
        if self.inputs.ids is None:
            raise Unavailable(_NO_IDS)
        if self.before.logits is None:
            raise Unavailable(_NO_LOGITS)


def change(
    what: str, apart: torch.Tensor, where: torch.Tensor, allowed: float, effect: float | None, **detail: Any
) -> Change:
    """The `Change` of the positions `where` [B, T] that moved `apart` [B, T]."""
    if not where.any():
        raise Unavailable("no position is left to compare")
    compared = apart.masked_fill(~where, -1.0)
    row, position = divmod(int(compared.argmax()), compared.shape[1])
    return Change(
        what=what,
        moved=float(compared.max()),
        allowed=allowed,
        effect=effect,
        positions=int(where.sum()),
        moved_positions=int((compared > allowed).sum()),
        row=row,
        position=position,
        detail=detail,
    )
