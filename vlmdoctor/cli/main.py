"""The `vlmdoctor` command: finds the commands and turns every failure into an exit status."""

from __future__ import annotations

import contextlib
import errno
import importlib
import pkgutil
import sys
import traceback
from pathlib import Path
from typing import Annotated, TextIO

import typer

import vlmdoctor.cli
from minivlm.help_page import CONTEXT
from vlmdoctor import __version__, boundary, streams
from vlmdoctor.cli.lazy_convert import Ended, QuickGroup, quick_command
from vlmdoctor.errors import NotRestored, UserError
from vlmdoctor.plain_text import (
    BLOCK,
    MOST_SENTENCE,
    plain_line,
    plain_lines,
    raised,
    text_of,
    without_commands,
)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
INTERRUPTED = 130  # as shells have it
RUN_MODELS = {"check", "init", "look", "report", "train"}
NOT_COMMANDS = {"completion", "lazy_convert", "main", "output", "run_ending"}


def _version(wanted: bool) -> None:
    if wanted:
        print(f"vlmdoctor {__version__}")
        raise typer.Exit


def _main(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Finds in seconds what is wrong with a vision-language model's training run.

    Exit status: 0 no issues, 1 findings, 2 could not run.
    """


def build_app(wanted: str | None = None) -> typer.Typer:
    """The Typer app with every file of `vlmdoctor/cli/` as a command (`check_env.py` is `check-env`).

    Where `wanted` is one of them, it is the only one, since importing the others takes time.
    """
    files = [info.name for info in pkgutil.iter_modules(vlmdoctor.cli.__path__)]
    commands = {name.replace("_", "-"): name for name in files if name not in NOT_COMMANDS}
    app = typer.Typer(
        name="vlmdoctor",
        cls=QuickGroup,
        no_args_is_help=True,
        # Its own options are those of the list of commands; to complete a word, they are not needed.
        add_completion=wanted not in commands,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # see minivlm.help_page
        context_settings=CONTEXT,
    )
    app.callback()(_main)
    for command in [wanted] if wanted in commands else commands:
        module = importlib.import_module(f"vlmdoctor.cli.{commands[command]}")
        app.command(
            command, cls=quick_command(getattr(module, "TEXTS", ()), getattr(module, "EXAMPLES", ()))
        )(module.command)
    return app


def run() -> None:
    """Runs the command line and exits: 0 clean, 1 findings, 2 where it could not run."""
    arguments = sys.argv[1:]
    streams.prepare()
    said = sys.stderr  # the user's code may put others in its place
    try:
        try:
            if arguments and arguments[0] in RUN_MODELS and not {"-h", "--help"} & set(arguments):
                boundary.current_folder()  # where it is gone, torch's own libraries end the process on import
            build_app(arguments[0] if arguments else None)(args=arguments)
        finally:
            sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as error:
        sys.exit(_failed(error, arguments, said))


def _failed(error: BaseException, arguments: list[str], said: TextIO) -> int:
    """Says what ended the program; the exit status."""
    error = error.__cause__ if isinstance(error, Ended) and isinstance(error.__cause__, Exception) else error
    if isinstance(error, Ended | KeyboardInterrupt):
        print("vlmdoctor: interrupted.", file=said)
        return INTERRUPTED
    if isinstance(error, BrokenPipeError):
        # The reader of our output has gone (`| head`): nobody is left to read it.
        streams.drop(sys.stdout)
    elif isinstance(error, OSError) and error.errno in _FULL:
        streams.drop(sys.stdout)
        print(f"vlmdoctor: can't write: {error.strerror}.", file=said)
    elif isinstance(error, NotRestored) or is_user_error(error):
        print(f"vlmdoctor: {plain_line(text_of(error, MOST_SENTENCE), MOST_SENTENCE)}", file=said)
        if error.__cause__ is not None and {"-v", "--verbose"} & set(arguments):
            print(_traceback(error.__cause__), file=said)
    elif (file := _shadowing()) is not None:
        print(
            f"vlmdoctor: {plain_line(str(file))} hides the package '{file.stem}' that vlmdoctor "
            f"needs, and fails as one ({raised(error)}); rename it, or run from another folder.",
            file=said,
        )
    else:
        print(_traceback(error), file=said)
        print(
            "vlmdoctor: this is a fault of vlmdoctor itself, not of your model; please report it with "
            "the lines above.",
            file=said,
        )
    return 2


def _shadowing() -> Path | None:
    from vlmdoctor.shadowing import shadowing  # which is needed where all else has failed

    return shadowing()


def _traceback(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error)).rstrip("\n")
    # Its end says most, and a chain of recursion is long.
    return without_commands(plain_lines(lines[-BLOCK:]))


def is_user_error(error: BaseException) -> bool:
    """Whether the message is for the user as it is: vlmdoctor's own kind, or the bundled trainer's."""
    with contextlib.suppress(ImportError):
        from minivlm.errors import UserError as TrainerUserError

        return isinstance(error, UserError | TrainerUserError)
    return isinstance(error, UserError)
