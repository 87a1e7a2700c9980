"""torch-audit: hooks around the training loop."""

from __future__ import annotations

from benchmarks.detection.rivals.rival import Said, loss_of, optimizer_of
from vlmdoctor.subject import Subject

NAME = "torch-audit"
REQUIREMENT = "torch-audit==0.3.0"
USED = (
    "an `Auditor` that audits every step: its static and initial checks, then two training steps with its "
    "patched forward, its `backward` and its `optimizer_step`; what it calls INFO is no alarm, and it fails "
    "every batch whose labels hold -100"
)
STEPS = 2
CAUSES = (
    ("TA100", "", "non-finite non-finite-forward"),
    ("TA102", "", "exploding-gradient"),
    ("TA103", "", "no-gradient image-without-effect"),
    ("TA104", "", "no-gradient frozen-by-mistake"),
    ("TA105", "", "image-without-effect"),
    ("TA301", "", "pixel-range"),
    ("TA302", "", "blank-images pixels-not-usable"),
    ("TA305", "", "token-out-of-table"),
    ("TA500", "", "no-gradient"),
    ("TA202", "", "dtype-mismatch"),
)


def examine(subject: Subject) -> list[Said]:
    """Its warnings and errors, each rule once."""
    from torch_audit import Auditor

    optimizer = optimizer_of(subject)
    auditor = Auditor(subject.model, optimizer=optimizer, every_n_steps=1)
    auditor.autopatch(patch_optimizer=False)
    try:
        for _ in range(STEPS):
            if optimizer is not None:
                optimizer.zero_grad(set_to_none=True)
            auditor.backward(loss_of(subject))
            if optimizer is not None:
                auditor.optimizer_step()
    except Exception:
        pass  # the script ends with an exception of the model's, which is no finding of the tool's
    finally:
        auditor.unpatch()
    result = auditor.finish(report=False)
    said = {
        finding.rule_id: Said(
            finding.rule_id, "warning" if finding.severity.name == "WARN" else "error", finding.message
        )
        for finding in result.findings
        if finding.severity.name != "INFO"
    }
    return list(said.values())
