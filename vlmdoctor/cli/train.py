"""`vlmdoctor train`: trains the bundled minivlm and watches it learn."""

from __future__ import annotations

import shlex
import sys
import time
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Annotated, Any

import typer

from minivlm.options import with_train_options
from minivlm.program import started_as
from minivlm.signals import terminable
from minivlm.train_config import TrainConfig
from vlmdoctor.boundary import whole_number
from vlmdoctor.cli.output import OutputOptions, exit_status, options_of, with_output_options
from vlmdoctor.plain_text import first_line, plain_line, text_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vlmdoctor.live.display import Display
    from vlmdoctor.live.session import Session, Wishes
    from vlmdoctor.live.state import LiveState

PANEL = "Watching"


EXAMPLES = (
    ("vlmdoctor train", "About two minutes on two cores; no GPU, no download."),
    ("vlmdoctor train --max-steps 20", "A gate for CI."),
    ("vlmdoctor train --resume", "Go on with the newest run under runs/."),
)


@with_output_options
@with_train_options
def command(
    config: TrainConfig,
    watch_grads: Annotated[
        bool,
        typer.Option(
            "--watch-grads/--no-watch-grads",
            help="Measure gradients and updates of every part and layer.",
            rich_help_panel=PANEL,
        ),
    ] = True,
    watch_every: Annotated[
        int,
        typer.Option(min=1, help="Measure every so many steps, and the first few.", rich_help_panel=PANEL),
    ] = 10,
    preflight: Annotated[
        bool,
        typer.Option(
            "--preflight/--no-preflight",
            help="Check before the first step, and stop there if an error is found.",
            rich_help_panel=PANEL,
        ),
    ] = True,
    require_accuracy: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Fail if fewer of the answers about unseen images are right, such as 0.9.",
            rich_help_panel=PANEL,
            show_default=False,
        ),
    ] = None,
    *,
    output: OutputOptions,
) -> None:
    """Train the bundled minivlm and watch it learn: gradients by part and layer, and the use of its images.

    It ends with a verdict, plots and report.html in the run folder, and exit status 1 if something is wrong.
    """
    from vlmdoctor.live.display import Silent, display_for
    from vlmdoctor.live.state import LiveState

    def wished() -> Wishes:
        from vlmdoctor.examine import model_rules
        from vlmdoctor.live.session import Wishes
        from vlmdoctor.runs.conclusion import rules_for_runs

        return Wishes(
            every=watch_every if watch_grads else 0,
            preflight=preflight,
            rules=output.rules(rules_for_runs()),
            preflight_rules=output.rules(model_rules()),
            required_accuracy=require_accuracy,
            fail_on=output.fail_on,
            command=shlex.join(["vlmdoctor", *sys.argv[1:]]),
        )

    rank = whole_number("RANK")
    state = LiveState()
    stage = "" if config.stage == "sft" else f", stage {config.stage}"
    state.title = f"{config.preset} on {config.data}{stage}"
    state.phase = "loading"
    people = output.output_format == "full"
    display = display_for(state, quiet=output.quiet, for_people=people) if rank == 0 else Silent()
    started = time.perf_counter()
    with terminable():
        try:
            watching = _watching(watch_grads, watch_every, require_accuracy)
            start = [*started_as("vlmdoctor"), "train", *watching, *options_of(output)]
            session, error = _watched(config, state, display, wished, start)
        except (Exception, KeyboardInterrupt) as stop:
            raise _in_words(
                stop, "interrupted before the first step; nothing was trained"
            ) from stop.__cause__
        try:
            if rank == 0:
                raise typer.Exit(_conclude(session, error, output, time.perf_counter() - started))
        except KeyboardInterrupt as stop:
            again = f"make them with: vlmdoctor report {session.folder}"
            raise _in_words(stop, f"interrupted while the results were written; {again}") from None
        finally:
            session.release()
    if error is not None:
        raise _in_words(error, "interrupted")


def _watched(
    config: TrainConfig,
    state: LiveState,
    display: Display,
    wished: Callable[[], Wishes],
    command: Sequence[str],
) -> tuple[Session, BaseException | None]:
    """Trains behind the display; the session, and what ended the run before its planned end."""
    display.start()
    try:
        from vlmdoctor.live.session import Session

        session = Session(wished(), state, display)
        return session, _train(config, session, command)
    finally:
        # Nothing is left of the view where the run never came to its first step.
        display.stop(keep=state.step is not None)


def _watching(grads: bool, every: int, required_accuracy: float | None) -> list[str]:
    """The options of watching that differ from the defaults, as they are typed."""
    words = [] if grads else ["--no-watch-grads"]
    words += [] if every == 10 else ["--watch-every", str(every)]
    return words + ([] if required_accuracy is None else ["--require-accuracy", str(required_accuracy)])


def _in_words(error: BaseException, interrupted: str) -> BaseException:
    """The exit for what a signal ended, when its sentence is printed; other errors as they are."""
    if not isinstance(error, KeyboardInterrupt) and not hasattr(error, "exit_status"):
        return error
    print(f"vlmdoctor: {interrupted if isinstance(error, KeyboardInterrupt) else error}", file=sys.stderr)
    return typer.Exit(getattr(error, "exit_status", 130))


def _train(config: TrainConfig, session: Session, command: Sequence[str]) -> BaseException | None:
    """Trains; gives back what ended it before its planned end, if it had begun."""
    from minivlm.train import train
    from vlmdoctor.live.session import PreflightStop

    try:
        # Standard output is for the report: whatever a library prints must not get into it.
        with redirect_stdout(sys.stderr):
            train(config, [session], command)
    except (Exception, KeyboardInterrupt, PreflightStop) as error:
        if session.run is None:
            raise
        return error
    return None


def _conclude(session: Session, error: BaseException | None, output: OutputOptions, seconds: float) -> int:
    """Judges, draws and prints; the exit status."""
    from vlmdoctor.cli.main import is_user_error
    from vlmdoctor.cli.run_ending import next_command, present
    from vlmdoctor.live.session import PreflightStop
    from vlmdoctor.runs.outputs import publish

    folder = session.folder
    assert folder is not None
    report = session.judgement(seconds)
    if isinstance(error, PreflightStop):
        print("vlmdoctor: stopped before the first step; nothing was trained.", file=sys.stderr)
        session.release()
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        present(report, output, None, folder)
        return exit_status(report, output)
    if error is not None and is_user_error(error) and not folder.is_dir():
        _complain(text_of(error))
        return 2
    examples = _examples(session) if error is None else []
    summary = publish(folder, report, _complain, environment=_environment())
    present(report, output, summary, folder, ask=next_command(folder, examples))
    if error is None:
        return exit_status(report, output)
    stopped = getattr(error, "exit_status", None) or (130 if isinstance(error, KeyboardInterrupt) else None)
    if stopped is None and not is_user_error(error):
        raise error
    _complain(text_of(error) or "interrupted")
    # A run that broke down for a reason that was found has a judgement; otherwise there is none.
    return stopped or (1 if report.failing and not output.exit_zero else 2)


def _examples(session: Session) -> list[dict[str, Any]]:
    """A few answers of the trained model, where it can have learned to answer."""
    from vlmdoctor.runs.examples import ask_examples
    from vlmdoctor.runs.verdict import SHORT_RUN

    run = session.run
    if run is None or run.config.stage == "clip" or run.step < SHORT_RUN:
        return []
    try:
        with redirect_stdout(sys.stderr):
            return ask_examples(run.out, run.config)
    except Exception as error:
        _complain(f"the trained model could not be asked for examples: {first_line(error)}")
        return []


def _environment() -> dict[str, Any]:
    """Versions and devices, as far as they are easily known."""
    from vlmdoctor.probes.machine.snapshot import snapshot

    try:
        seen = snapshot()
    except Exception as error:
        _complain(f"the environment could not be noted: {first_line(error)}")
        return {}
    gpus = {"GPUs": ", ".join(seen.names)} if seen.gpus else {}
    return {"python": seen.python, "platform": seen.platform, "cpus": seen.cpus, **gpus, **seen.packages}


def _complain(sentence: str) -> None:
    print(f"vlmdoctor: {plain_line(sentence)}", file=sys.stderr)
