"""resume-not-exact: a run that was saved and loaded takes another step than one that was not."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.resume import Resume
from vlmdoctor.finding import Finding, Fix, Inferred, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import counted, listed, places

SHOWN = 3


@rule("resume-not-exact", "CKPT105")
def resume_not_exact(resume: Resume) -> Iterator[Finding]:
    """Resume not exact: the state dicts lack something that the next step needs.

    ## Why it matters
    The loss jumps, or drifts, when a run is resumed: moments of the optimizer, the step of the schedule, or a
    running average that a module keeps as a plain attribute start again ([pytorch-lightning
    10766](https://github.com/Lightning-AI/pytorch-lightning/issues/10766), [transformers
    33336](https://github.com/huggingface/transformers/issues/33336)).

    ## Confidence and false positives
    Measured on copies: after two steps the state dicts are loaded into fresh copies, and both take the next
    step with the same random numbers; that the step itself is reproducible was checked. It is a warning,
    since it does not affect a run that is never resumed. What a training loop does not save is not detected.

    ## What to do
    Keep everything that changes in training in buffers (`register_buffer`) and in the optimizer's `state`.
    """
    if resume.raised is not None:
        yield Finding(
            "the state dicts can't be loaded back into the same model and optimizer",
            Severity.WARNING,
            measured={"raised": resume.raised},
            threshold={"raised": None},
            cause="loading the state dict that was just saved raises, as it will when the run is resumed",
            fix=Fix("make state_dict and load_state_dict match"),
        )
    elif resume.differing:
        cause, at, fix = _why(resume)
        yield Finding(
            "after saving and loading, the next step differs for "
            f"{counted(len(resume.differing), 'parameter')} of {resume.parameters}",
            Severity.WARNING,
            at=at or places(resume.differing),
            measured={"parameters": len(resume.differing), "largest_difference": resume.largest},
            threshold={"parameters": 0},
            cause=cause,
            fix=fix,
        )


def _why(resume: Resume) -> tuple[str, tuple[str, ...], Fix]:
    if resume.lr is not None and resume.lr_loaded is not None and resume.lr != resume.lr_loaded:
        cause = f"the learning rate is {resume.lr_loaded:.4g} after loading and was {resume.lr:.4g}"
        return cause, ("scheduler",), Fix("save and load the scheduler's whole state")
    if resume.optimizer_state_loaded < resume.optimizer_state:
        cause = (
            f"the optimizer keeps a state for {resume.optimizer_state} parameters, and for "
            f"{resume.optimizer_state_loaded} after loading"
        )
        return cause, ("optimizer",), Fix("keep the whole state in the optimizer's state dict")
    if resume.unsaved:
        names = listed(resume.unsaved[:SHOWN])
        many = len(resume.unsaved) > 1
        cause = (
            f"{names} {'change' if many else 'changes'} in training and {'are' if many else 'is'} not saved"
        )
        fix = Fix("register it as a buffer, so that it is saved", ('self.register_buffer("name", tensor)',))
        return cause, resume.unsaved[:SHOWN], fix
    cause = Inferred(
        "something that the step depends on is in none of the state dicts; what it is was not established"
    )
    fix = Fix("look for plain attributes that change in model.forward or optimizer.step")
    return cause, (), fix


@resume_not_exact.bad
def running_average_in_an_attribute() -> Resume:
    return Resume(
        parameters=4, differing=("head.weight",), largest=0.2, lr=1e-3, lr_loaded=1e-3, unsaved=("average",)
    )


@resume_not_exact.bad
def moments_lost() -> Resume:
    return Resume(
        parameters=4,
        differing=("head.weight",),
        largest=0.9,
        lr=1e-3,
        lr_loaded=1e-3,
        unsaved=(),
        optimizer_state=4,
        optimizer_state_loaded=0,
    )


@resume_not_exact.bad
def loading_raises() -> Resume:
    return Resume(parameters=4, raised="RuntimeError: Error(s) in loading state_dict")


@resume_not_exact.good
def the_same() -> Resume:
    return Resume(
        parameters=4,
        differing=(),
        largest=0.0,
        lr=1e-3,
        lr_loaded=1e-3,
        unsaved=(),
        optimizer_state=4,
        optimizer_state_loaded=4,
    )
