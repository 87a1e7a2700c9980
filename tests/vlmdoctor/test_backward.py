"""Which parameters one backward pass reaches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.backward import Backward
from vlmdoctor.rules.grad.backward_raises import backward_raises
from vlmdoctor.subject import Subject


class Model(nn.Module):
    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        self.vision_encoder = nn.Linear(4, 4)
        self.vision_proj = nn.Linear(4, 4)
        self.lm_head = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)
        self.gate = nn.Parameter(torch.zeros(()))
        self.cut = cut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.vision_encoder(x)
        if self.cut:
            features = features.detach()
        return self.lm_head(x + self.gate * self.vision_proj(features)).square().mean()


def backward_of(model: nn.Module) -> Backward:
    return Gatherer(Subject(model, batch=(torch.ones(2, 4),)))(Backward)


def test_present_zero_and_absent_gradients_are_told_apart() -> None:
    gradients = {gradient.name: gradient for gradient in backward_of(Model(cut=True)).gradients}
    assert not gradients["vision_encoder.weight"].present
    assert not gradients["unused.weight"].present
    assert gradients["vision_proj.weight"].present and gradients["vision_proj.weight"].zero
    head = gradients["lm_head.weight"]
    assert head.present and not head.zero and head.finite and head.norm and head.norm > 0
    assert head.role == "head"


def test_frozen_parameters_are_left_out() -> None:
    model = Model()
    model.vision_encoder.requires_grad_(False)
    evidence = backward_of(model)
    assert "vision_encoder.weight" not in {gradient.name for gradient in evidence.gradients}
    assert (evidence.trainable, evidence.parameters) == (7, 9)


def test_non_finite_gradients_have_no_norm() -> None:
    model = Model()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("inf"))
    gradients = {gradient.name: gradient for gradient in backward_of(model).gradients}
    assert gradients["lm_head.weight"].finite is False
    assert gradients["lm_head.weight"].norm is None


def test_a_loss_without_a_graph_is_a_finding() -> None:
    (finding,) = backward_raises.function(backward_of(Model().requires_grad_(False)))
    assert "none of the 9 parameter tensors has requires_grad" in (finding.cause or "")

    class Detached(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).detach()

    (finding,) = backward_raises.function(backward_of(Detached()))
    assert "9 of 9 parameter tensors have requires_grad" in (finding.cause or "")


def test_an_exception_in_backward_is_a_finding() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.proj(x).exp()
            loss = y.sum()
            y.add_(1)
            return loss

    (finding,) = backward_raises.function(backward_of(InPlace()))
    assert "inplace operation" in finding.message


def test_hooks_that_run_after_accumulation_do_not_run() -> None:
    model, ran = Model(), []
    model.lm_head.weight.register_post_accumulate_grad_hook(lambda parameter: ran.append(parameter))
    backward_of(model)
    assert ran == []
    model(torch.ones(2, 4)).backward()
    assert len(ran) == 1


def test_reentrant_checkpointing_works() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return checkpoint(super().forward, x.requires_grad_(), use_reentrant=True)

    gradients = {gradient.name: gradient for gradient in backward_of(Checkpointed()).gradients}
    assert gradients["lm_head.weight"].present


@pytest.mark.parametrize("output", [None, {"logits": torch.ones(2, 2)}])
def test_without_a_loss_there_is_no_evidence(output: object) -> None:
    class NoLoss(Model):
        def forward(self, x: torch.Tensor) -> object:
            return output

    with pytest.raises(Unavailable, match="gives no loss"):
        backward_of(NoLoss())


def test_after_a_failed_forward_there_is_no_evidence() -> None:
    with pytest.raises(Unavailable, match="the forward pass raises"):
        Gatherer(Subject(Model(), batch=(torch.ones(2, 5),)))(Backward)
