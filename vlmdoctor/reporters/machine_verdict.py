"""Whether a machine can train, on what, and if not why: the line that `check-env` opens with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.plain_text import plain_line

GIB = 1024**3
# Errors of these rules are of what training needs: GPUs that are seen, their driver, a torch that fits them.
_NEEDED = ("ENV1", "ENV2", "ENV3")
_GLYPHS = {"ready": "✓", "flawed": "!", "not ready": "✗", "unknown": "?"}
_COLOURS = {"ready": "green", "flawed": "yellow", "not ready": "red", "unknown": "yellow"}


@dataclass(frozen=True)
class Verdict:
    """What the machine can do.

    Attributes:
        state: `ready`; `flawed`: ready, with warnings; `not ready`; `unknown`: that is not shown.
        text: In one line, without the glyph.
    """

    state: str
    text: str

    @property
    def style(self) -> str:
        """Of a terminal."""
        return f"bold {_COLOURS[self.state]}"

    @property
    def line(self) -> str:
        """Glyph and text."""
        return f"{_GLYPHS[self.state]} {self.text}"


def verdict_of(
    environment: Environment, findings: Iterable[Finding], incomplete: str | None = None
) -> Verdict:
    """The verdict over all findings: the worst of them decides, so that it is never better than they are.

    Args:
        incomplete: Why checks could not run; None where all did.
    """
    findings = list(findings)
    errors = [f for f in findings if f.severity is Severity.ERROR]
    needed = [f for f in errors if f.code.startswith(_NEEDED)]
    if needed:
        return Verdict("not ready", f"not ready to train: {_first(needed, errors)}")
    ready, text = ability(environment)
    if errors:
        return Verdict("not ready", f"{_first(errors, errors)}; the machine {text}")
    if incomplete is not None:
        return Verdict("unknown", plain_line(f"{text}, as far as checks ran: {incomplete}"))
    warnings = [f for f in findings if f.severity is Severity.WARNING]
    if ready == "ready" and warnings:
        return Verdict("flawed", f"{text}, but {_first(warnings, warnings)}")
    return Verdict(ready, text)


def _first(found: list[Finding], all_found: list[Finding]) -> str:
    others = len(all_found) - 1
    return plain_line(found[0].message) + (f" (and {others} more below)" if others else "")


def ability(environment: Environment) -> tuple[str, str]:
    """(state, text) of what the machine has, whatever the findings say."""
    from vlmdoctor.rules.env.demand_not_met import seen_gpus

    gpus = seen_gpus(environment)
    if "torch" in environment.unseen:
        return "unknown", "whether torch can use the GPUs is not shown by this report"
    if "gpus" in environment.unseen:
        return "unknown", "whether there is a GPU is not shown by this report"
    if environment.torch is None:
        return "not ready", "not ready to train: torch is not installed"
    if gpus and environment.torch.cuda:
        known = [gpu.memory for gpu in gpus if gpu.memory]
        room = f" with {min(known) / GIB:.0f} GiB" if known else ""
        room += " each" if room and len(gpus) > 1 else ""
        old = [gpu for gpu in gpus if gpu.capability and gpu.capability < (8, 0)]
        precision = "; bf16 is slow there, use fp16" if old else ""
        unseen = "; variables that may hide them are not shown" if "variables" in environment.unseen else ""
        count = "1 GPU" if len(gpus) == 1 else f"{len(gpus)} GPUs"
        return "ready", f"can train on {count}{room}{precision}{unseen}"
    if environment.other_accelerator and (environment.torch.hip or "Apple" in environment.other_accelerator):
        return "ready", f"can train on {environment.other_accelerator}, if its torch supports the model"
    return "ready", "can train small models on the CPU; a VLM of billions of parameters needs a GPU"
