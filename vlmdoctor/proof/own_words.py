"""Findings in the user's own words: the names of the batch's parts, and the settings of a Trainer."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from vlmdoctor.finding import Finding
from vlmdoctor.probes.batch.fields import own_names
from vlmdoctor.subject import Subject

_RATE = re.compile(r"optimizer = torch\.optim\.\w+\(model\.parameters\(\), lr=([-+.\de]+)\)")


def in_own_names(findings: Sequence[Finding], subject: Subject) -> tuple[Finding, ...]:
    """What is wrong with `labels` is reported of `targets`, and its fix names them, where the batch does."""
    names = {} if subject.batch is None else own_names(subject.model, subject.batch, subject.loss_fn)
    return tuple(_renamed(finding, names) if names else finding for finding in findings)


def _renamed(finding: Finding, names: Mapping[str, str]) -> Finding:
    fix = finding.fix
    known = {name: own for name, own in names.items() if own.isidentifier()}
    if fix is not None and known:
        # Neither an argument of that name nor an entry in quotes: `f(labels=x)`, `batch["labels"]`.
        words = re.compile(rf"(?<![\w.\"'])({'|'.join(map(re.escape, known))})(?![\w\"'])(?!=[^=])")
        lines = tuple(words.sub(lambda found: known[found[0]], line) for line in fix.commands)
        fix = dataclasses.replace(fix, commands=lines)
    return dataclasses.replace(finding, at=tuple(names.get(at, at) for at in finding.at), fix=fix)


def in_own_api(findings: Sequence[Finding], subject: Subject) -> tuple[Finding, ...]:
    """Whoever has a Trainer makes no optimizer: its rate is a setting of the training arguments."""
    if not hasattr(subject.training_args, "learning_rate"):
        return tuple(findings)
    kind = type(subject.training_args).__name__
    done = []
    for finding in findings:
        if (fix := finding.fix) is not None:
            lines = tuple(_RATE.sub(rf"{kind}(..., learning_rate=\1)", line) for line in fix.commands)
            # What ran on the copy was the line before it was put in the framework's words.
            ran = fix.tried and lines == fix.commands
            finding = dataclasses.replace(finding, fix=dataclasses.replace(fix, commands=lines, tried=ran))
        done.append(finding)
    return tuple(done)
