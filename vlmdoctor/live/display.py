"""Where a run is drawn: one live view in a terminal, plain lines everywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from minivlm import progress
from vlmdoctor.finding import Finding
from vlmdoctor.live.spark import UNICODE, signs_for
from vlmdoctor.live.state import LiveState
from vlmdoctor.live.view import draw
from vlmdoctor.notebook.screen import below_a_kernel
from vlmdoctor.plain_text import first_line, plain_line
from vlmdoctor.reporters.card import card_lines, withdrawn_line
from vlmdoctor.runs.numbers import percent

# Drawing takes about 1.5 ms: at this rate it costs a 50 ms training step less than 1%.
REFRESHES_PER_SECOND = 3


class LiveView:
    """The live view, on standard error."""

    def __init__(self, state: LiveState, console: Console) -> None:
        self._state = state
        self._console = console
        self._signs = signs_for(console.encoding)
        self._frame = Text()
        self._live = Live(
            get_renderable=self._draw, console=console, refresh_per_second=REFRESHES_PER_SECOND, screen=False
        )

    def _draw(self) -> Text:
        # A fault in the drawing must not end in a traceback across the screen three times a second.
        try:
            self._frame = draw(self._state, self._console.width, self._signs)
        except Exception as error:
            self._frame = Text(f" step {self._state.step}: the view can't be drawn ({first_line(error)})")
        return self._frame

    def start(self) -> None:
        """Puts the view up."""
        self._live.start()

    def begin(self) -> None:
        """The view draws itself from the state, at its own pace."""

    def log(self, record: Mapping[str, Any]) -> None:
        """The view draws itself from the state, at its own pace."""

    def evaluating(self, done: int, total: int) -> None:
        """The view draws itself from the state, at its own pace."""

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """The view draws itself from the state, at its own pace."""

    def noticed(self, finding: Finding) -> None:
        """The view draws itself from the state, at its own pace."""

    def withdrawn(self, finding: Finding, step: int) -> None:
        """The view draws itself from the state, at its own pace."""

    def say(self, sentence: str) -> None:
        """Prints a sentence above the view."""
        self._console.print(plain_line(sentence), markup=False, highlight=False, emoji=False)

    def stop(self, *, keep: bool = True) -> None:
        """Leaves the last state of the view standing, or takes it away; a second call does nothing."""
        self._live.transient = not keep
        self._live.stop()


class PlainLines:
    """A line for each logged step and evaluation, a card for each finding: for logs, CI and notebooks."""

    def __init__(self, state: LiveState, stream: TextIO) -> None:
        self._state = state
        self._stream = stream
        self._unicode = signs_for(getattr(stream, "encoding", None) or "ascii") is UNICODE

    def start(self) -> None:
        """There is nothing to say yet."""

    def begin(self) -> None:
        """Says what is trained."""
        state = self._state
        parts = ", ".join(f"{p.role} {p.parameters:,} [{p.state}]" for p in state.parts.values())
        self.say(f"vlmdoctor train: {state.title}, {state.place}")
        if parts:
            self.say(f"parameters: {parts}")

    def log(self, record: Mapping[str, Any]) -> None:
        """The familiar line, with the gradient norm of each part behind it where it was measured."""
        self.say(step_line(record, self._state))

    def evaluating(self, done: int, total: int) -> None:
        """A line now and then, where no view shows it."""
        self.say(progress.line(done, total))

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """One line with the accuracy and the losses, with the images and with shuffled ones."""
        self.say(evaluation_line(record))

    def noticed(self, finding: Finding) -> None:
        """Its card, as it arises."""
        for line in card_lines(finding):
            self.say(line)

    def withdrawn(self, finding: Finding, step: int) -> None:
        """One line, when it is seen that it no longer holds."""
        self.say(withdrawn_line(step=step, message=finding.message, rule=finding.rule, code=finding.code))

    def say(self, sentence: str) -> None:
        """Prints one line at once."""
        if not self._unicode:
            sentence = sentence.encode("ascii", "replace").decode("ascii")
        print(plain_line(sentence), file=self._stream, flush=True)

    def stop(self, *, keep: bool = True) -> None:
        """Nothing has to be taken down."""


class Silent:
    """Shows nothing: under --quiet, and in all processes of a distributed run but the first."""

    def start(self) -> None:
        """Shows nothing."""

    def begin(self) -> None:
        """Shows nothing."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Shows nothing."""

    def evaluating(self, done: int, total: int) -> None:
        """Shows nothing."""

    def evaluated(self, record: Mapping[str, Any]) -> None:
        """Shows nothing."""

    def noticed(self, finding: Finding) -> None:
        """Shows nothing."""

    def withdrawn(self, finding: Finding, step: int) -> None:
        """Shows nothing."""

    def say(self, sentence: str) -> None:
        """Shows nothing."""

    def stop(self, *, keep: bool = True) -> None:
        """Shows nothing."""


Display = LiveView | PlainLines | Silent


def display_for(state: LiveState, *, quiet: bool = False, for_people: bool = False) -> Display:
    """The display that suits where the output goes: a live view only where a person watches both streams.

    A notebook shows standard error on red. `for_people` says that no program reads standard output: then the
    lines go there, in the cell of a notebook.
    """
    if quiet:
        return Silent()
    if below_a_kernel():
        return PlainLines(state, sys.stdout if for_people else sys.stderr)
    console = Console(stderr=True, highlight=False)
    watched = sys.stdout.isatty() and console.is_terminal and not console.is_dumb_terminal
    if watched and not os.environ.get("CI"):
        return LiveView(state, console)
    return PlainLines(state, sys.stderr)


def step_line(record: Mapping[str, Any], state: LiveState) -> str:
    """`[Train Epoch 1] step: 0, loss: 6.5223, lr: 1.0e-03, grad_norm: 3.81 (vision 0.91, ...), ...`."""
    parts = [f"step: {record.get('step', 0)}"]
    for name, label, shape in (
        ("loss", "loss", "{:.4f}"),
        ("lr", "lr", "{:.2e}"),
        ("grad_norm", "grad_norm", "{:.3g}"),
    ):
        if isinstance(value := record.get(name), int | float):
            parts.append(f"{label}: {shape.format(value)}")
    norms = [f"{p.role} {p.norm.last:.2g}" for p in state.parts.values() if p.norm.last is not None]
    if norms and state.sampled_step == record.get("step"):
        parts[-1] += f" ({', '.join(norms)})"
    for name, label, shape in (
        ("tokens_per_s", "tokens/s", "{:,.0f}"),
        ("memory_mb", "mem", "{:,.0f} MB"),
        ("mfu", "mfu", "{:.1%}"),
    ):
        if isinstance(value := record.get(name), int | float):
            parts.append(f"{label}: {shape.format(value)}")
    return f"[Train Epoch {record.get('epoch', 1)}] {', '.join(parts)}"


def evaluation_line(record: Mapping[str, Any]) -> str:
    """`[Evaluate] step: 1999, accuracy: 95.6%, accuracy (shuffled images): 11%, loss: 0.16, ...`."""
    parts = [f"step: {record.get('step', 0)}"]
    if isinstance(accuracy := record.get("accuracy"), int | float):
        parts.append(f"accuracy: {percent(accuracy)}")
        if isinstance(shuffled := record.get("accuracy_shuffled"), int | float):
            parts.append(f"accuracy (shuffled images): {percent(shuffled)}")
    losses = {"loss": "loss", "loss_shuffled": "loss (shuffled images)", "loss_blank": "loss (blank images)"}
    for name, label in losses.items():
        if isinstance(value := record.get(name), int | float):
            parts.append(f"{label}: {value:.3f}")
    return f"[Evaluate] {', '.join(parts)}"
