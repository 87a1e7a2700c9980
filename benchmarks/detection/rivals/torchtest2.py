"""torchtest2: 18 checks on one batch, in one call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.detection.rivals.rival import Said, apart, joined, meant_frozen, optimizer_of, raised
from vlmdoctor.sandbox.call import call, loss_in
from vlmdoctor.subject import Subject

NAME = "torchtest2"
REQUIREMENT = "torchtest2==0.1.0"
USED = (
    "`check_model` with its defaults (200 steps of overfitting): inputs, labels, the optimizer, the names of "
    "what is to stay frozen, and functions that call the model with labels and without; a second call with "
    "`F.cross_entropy` on the logits, without which its check of the first loss does not run"
)
CAUSES = (
    *raised("forward"),
    *raised("loss", "raised"),
    ("loss", r"not connected|leaf tensor", "no-gradient"),
    ("loss", r"the loss is (nan|-?inf)", "non-finite-forward"),
    ("output_finite", "", "non-finite-forward"),
    ("output_varies", "", "image-without-effect wrong-image"),
    ("initial_loss", "", "initial-loss"),
    ("optimizer_coverage", "not in the optimizer", "trainable-not-in-optimizer"),
    ("optimizer_coverage", "holds", "optimizer-holds-other-tensors"),
    ("gradient_flow", "", "no-gradient"),
    ("gradient_flow", "no trainable|frozen", "frozen-by-mistake"),
    ("gradient_magnitude", "NaN", "non-finite"),
    ("gradient_magnitude", "exploding", "exploding-gradient"),
    ("params_change", "", "weights-not-moving"),
    ("frozen_params", "expected to be frozen", "trained-by-mistake"),
    ("frozen_params", "match", "pattern-matches-nothing"),
    ("input_dependency", "pixel|image", "image-without-effect"),
    ("input_dependency", "attention_mask", "left-padding-seen"),
    ("input_dependency", "position", "rotary-not-relative"),
    ("batch_independence", "", "sample-leak wrong-image"),
    ("overfit_batch", "did not decrease", "weights-not-moving"),
    ("overfit_batch", "loss became", "non-finite exploding-gradient"),
    ("overfit_batch", "gradients became", "non-finite exploding-gradient"),
)


def examine(subject: Subject) -> list[Said]:
    """The failures and warnings of both calls."""
    import torchtest2

    inputs, labels = apart(subject.batch)
    if not _runs(subject.model, inputs) and _runs(subject.model, subject.batch):
        inputs, labels = subject.batch, None  # such as an encoder-decoder, which needs its labels
    optimizer = optimizer_of(subject)
    loss_fn = subject.loss_fn or (lambda model, batch: loss_in(call(model, batch)))
    report = torchtest2.check_model(
        subject.model,
        inputs,
        labels,
        loss_fn=lambda loss, *targets: loss,
        optimizer=optimizer,
        frozen=meant_frozen(subject),
        forward_fn=lambda model, given, targets: loss_fn(model, joined(given, targets)),
        eval_forward_fn=_outputs,
    )
    results = list(report.results)
    if labels is not None:
        results += _initial_loss(subject.model, inputs, labels, optimizer)
    severities = {"FAIL": "error", "WARN": "warning"}
    return [
        Said(result.name, severities[result.status.name], result.message)
        for result in results
        if result.status.name in severities
    ]


def _outputs(model: Any, inputs: Any) -> Any:
    output = call(model, inputs)
    return vars(output) if isinstance(output, SimpleNamespace) else output


def _initial_loss(model: Any, inputs: Any, labels: Any, optimizer: Any) -> list[Any]:
    import torch.nn.functional as F
    import torchtest2
    from torchtest2.checks import CHECKS

    def logits(model: Any, given: Any, targets: Any) -> Any:
        output = call(model, given)
        found = getattr(output, "logits", output[0] if isinstance(output, tuple) else output)
        return found[:, :-1].transpose(1, 2)

    report = torchtest2.check_model(
        model,
        inputs,
        labels[:, 1:],
        loss_fn=F.cross_entropy,
        forward_fn=logits,
        optimizer=optimizer,
        skip=[check for check in CHECKS if check not in ("forward", "loss", "initial_loss")],
    )
    return [result for result in report.results if result.name == "initial_loss"]


def _runs(model: Any, batch: Any) -> bool:
    try:
        with torch.no_grad(), torch.random.fork_rng():
            call(model, batch)
    except Exception:
        return False
    return True
