"""A watched run as a small piece of a page: status, loss, gradient norm of each part, findings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

from vlmdoctor.finding import Finding
from vlmdoctor.knowledge.parameter_names import ROLES
from vlmdoctor.notebook.curves import Curve, Points, svg
from vlmdoctor.plain_text import plain_line
from vlmdoctor.reporters.card import GLYPHS
from vlmdoctor.runs.numbers import clock

MOST_FINDINGS = 4
# The colours of the page of a run. A notebook has its own switch between light and dark.
LIGHT = (
    "--paper:#fff;--raised:#f6f8fa;--ink:#1c2127;--muted:#5d6670;--line:#e2e6ea;--error:#c2310a;"
    "--warning:#8f6200;--pass:#00745c;--info:#0067b1;--vision:#0067b1;--projector:#d55e00;--language:#00856a;"
    "--head:#a8428c;--other:#6b7480;--loss:#0067b1"
)
DARK = (
    "--paper:#14181d;--raised:#1c222a;--ink:#e8ebee;--muted:#98a2ad;--line:#2d343d;--error:#ff7a52;"
    "--warning:#f0b93a;--pass:#2fc09b;--info:#5cb3f0;--vision:#5cb3f0;--projector:#f28c38;--language:#2fc09b;"
    "--head:#e08cc8;--other:#98a2ad;--loss:#5cb3f0"
)
STYLE = (
    f".vlmdoctor-run{{{LIGHT};max-width:58rem;background:var(--paper);color:var(--ink);"
    "font:14px/1.5 system-ui,sans-serif;padding:.2rem 0}"
    'body[data-jp-theme-light="false"] .vlmdoctor-run,body.vscode-dark .vlmdoctor-run,'
    f"html[theme=dark] .vlmdoctor-run{{{DARK};padding:.6rem .8rem}}"
    ".vlmdoctor-run p{margin:.15rem 0}.vlmdoctor-run .muted{color:var(--muted)}"
    ".vlmdoctor-run .bar{height:.35rem;background:var(--line);border-radius:.2rem;margin:.35rem 0 .5rem}"
    ".vlmdoctor-run .bar i{display:block;height:100%;background:var(--loss);border-radius:.2rem}"
    ".vlmdoctor-run .panels{display:flex;flex-wrap:wrap;gap:.4rem 1.2rem}"
    ".vlmdoctor-run .panels div{flex:1 1 17rem;min-width:0;max-width:30rem}"
    ".vlmdoctor-run svg{display:block;width:100%;height:auto;background:transparent}"
    ".vlmdoctor-run svg text{font:10.5px system-ui,sans-serif;fill:var(--muted)}"
    ".vlmdoctor-run svg text.odd{fill:var(--error);font-size:13px;font-weight:700}"
    ".vlmdoctor-run .grid{stroke:var(--line);stroke-width:1}"
    ".vlmdoctor-run polyline{fill:none;stroke-width:1.8;stroke-linejoin:round}"
    ".vlmdoctor-run circle.ring{fill:var(--paper)!important;stroke-width:1.3}"
    ".vlmdoctor-run .key span{margin-right:.9rem;white-space:nowrap}"
    + "".join(
        f".vlmdoctor-run polyline.{name},.vlmdoctor-run circle.{name}{{stroke:var(--{name})}}"
        f".vlmdoctor-run circle.{name}{{fill:var(--{name})}}.vlmdoctor-run b.{name}{{color:var(--{name})}}"
        for name in (*ROLES, "loss")
    )
    + "".join(
        f".vlmdoctor-run .{name}{{color:var(--{name})}}" for name in ("error", "warning", "info", "pass")
    )
)


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What is shown of a run; plain values only.

    Attributes:
        target: What is trained.
        steps: How many optimizer steps were made.
        first: How many of them an earlier run had made.
        total: How many are planned; None where unknown.
        seconds: Since the watching began.
        phase: `running`, `finished`, `ended`, `stopped` or `not watched any more`.
        error: What ended the run before its time; empty where nothing did.
        loss: (step, loss) where it is known.
        norms: Role -> (step, gradient norm) at the sampled steps.
        frozen: Roles without a trainable parameter.
        findings: What was found so far.
        closing: The summary of the judgement at the end; empty before.
    """

    target: str
    steps: int
    first: int = 0
    total: int | None = None
    seconds: float = 0.0
    phase: str = "running"
    error: str = ""
    loss: Points = ()
    norms: Mapping[str, Points] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    closing: str = ""

    @property
    def at(self) -> str:
        """Such as `step 412 of 1,000`."""
        if not self.steps:
            return "no optimizer step yet"
        of = f" of {self.total:,}" if self.total else ""
        return f"step {self.steps:,}{of}"

    @property
    def last_loss(self) -> str:
        """Such as `loss 1.234`; says so where none was seen."""
        if self.loss:
            return f"loss {number(self.loss[-1][1])}"
        return "loss not seen: return it under loss or call watcher.log(loss=…)" if self.steps else ""

    @property
    def found(self) -> str:
        """The findings in a few words."""
        if self.closing:
            return self.closing
        if not self.findings:
            return "nothing found so far" if self.steps else ""
        worst = max(self.findings, key=lambda finding: finding.severity.rank)
        more = f" and {len(self.findings) - 1} more" if len(self.findings) > 1 else ""
        return f"{GLYPHS[worst.severity]} {worst.severity}: {worst.message}{more}"

    def line(self) -> str:
        """All of it in one line."""
        phase = "" if self.phase == "running" else self.phase
        parts = (self.at, self.last_loss, f"{phase}: {self.error}" if self.error else phase, self.found)
        return plain_line(", ".join(part for part in parts if part))


def number(value: float) -> str:
    """A loss or a norm in a few characters."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "infinite"
    return f"{value:.4g}" if not value or 1e-3 <= abs(value) < 1e5 else f"{value:.1e}"


def run_html(state: RunState) -> str:
    """The piece of a page, with its own style."""
    parts = [_head(state), _bar(state), _panels(state), _findings(state)]
    return f"<div class='vlmdoctor-run'><style>{STYLE}</style>{''.join(parts)}</div>"


def _head(state: RunState) -> str:
    passed = clock(state.seconds)
    words = [
        state.at,
        state.last_loss,
        passed if state.phase == "running" else f"{state.phase} after {passed}",
    ]
    if state.phase == "running" and state.total and state.first < state.steps < state.total:
        pace = state.seconds / (state.steps - state.first)
        words.append(f"about {clock(pace * (state.total - state.steps))} left")
    rest = " · ".join(escape(plain_line(word)) for word in words if word)
    error = f" · <b class='error'>{escape(plain_line(state.error, 300))}</b>" if state.error else ""
    return f"<p><b>{escape(plain_line(state.target))}</b> · {rest}{error}</p>"


def _bar(state: RunState) -> str:
    if not state.total:
        return ""
    done = 100 * min(state.steps / state.total, 1.0)
    return f"<div class='bar'><i style='width:{done:.1f}%'></i></div>"


def _panels(state: RunState) -> str:
    loss = svg([Curve("loss", state.loss)], "loss by step")
    curves = [Curve(role, state.norms[role]) for role in ROLES if state.norms.get(role)]
    norms = svg(curves, "gradient norm by step", log=True)
    key = [f"<span><b class='{c.name}'>{c.name}</b> {_norm(c.points[-1][1])}</span>" for c in curves]
    key += [f"<span class='muted'>{role} frozen</span>" for role in ROLES if role in state.frozen]
    panels = []
    if loss:
        panels.append(f"<div><p class='muted'>Loss</p>{loss}</div>")
    if norms:
        below = f"<p class='key'>{' '.join(key)}</p>"
        panels.append(f"<div><p class='muted'>Gradient norm, before clipping</p>{norms}{below}</div>")
    return f"<div class='panels'>{''.join(panels)}</div>" if panels else ""


def _norm(value: float) -> str:
    words = number(value) if value else "exactly 0"
    return words if value and math.isfinite(value) else f"<span class='error'>{words}</span>"


def _findings(state: RunState) -> str:
    worst_first = sorted(state.findings, key=lambda finding: -finding.severity.rank)
    rows = []
    for finding in worst_first[:MOST_FINDINGS]:
        since = f" from step {finding.step:,}" if finding.step is not None else ""
        rule = f"<span class='muted'>{escape(finding.rule)} {escape(finding.code)}</span>"
        rows.append(
            f"<p><b class='{finding.severity}'>{GLYPHS[finding.severity]} {finding.severity}</b>{since}: "
            f"{escape(finding.message)} {rule}</p>"
        )
    if len(worst_first) > MOST_FINDINGS:
        rows.append(f"<p class='muted'>and {len(worst_first) - MOST_FINDINGS} more</p>")
    if state.closing or not rows:
        rows.append(f"<p class='muted'>{escape(plain_line(state.found))}</p>")
    return "".join(rows)
