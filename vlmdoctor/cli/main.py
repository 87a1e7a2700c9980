"""The `vlmdoctor` command: finds the commands and turns every failure into an exit status."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import pkgutil
import sys
import traceback
from typing import Annotated

import typer

import vlmdoctor.cli
from vlmdoctor import __version__
from vlmdoctor.cli.quick import QuickGroup, quick_command
from vlmdoctor.errors import NotRestored, UserError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
NOT_COMMANDS = {"main", "output", "quick"}


def _version(wanted: bool) -> None:
    if wanted:
        print(f"vlmdoctor {__version__}")
        raise typer.Exit


def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Finds in seconds what is wrong with a vision-language model's training run.

    Exit status: 0 nothing found, 1 findings, 2 no judgement possible.
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
        add_completion=False,
        pretty_exceptions_enable=False,
        # The list of commands needs no frames, whose library takes longer to import than all the rest.
        rich_markup_mode="rich" if wanted in commands else None,
        context_settings={"max_content_width": 120},
    )
    app.callback()(_main)
    for command in [wanted] if wanted in commands else commands:
        module = importlib.import_module(f"vlmdoctor.cli.{commands[command]}")
        app.command(command, cls=quick_command(getattr(module, "TEXTS", ())))(module.command)
    return app


def run() -> None:
    """Runs the command line and exits: 0 clean, 1 findings, 2 anything that allows no judgement."""
    arguments = sys.argv[1:]
    _speak_unicode()
    try:
        build_app(arguments[0] if arguments else None)(args=arguments)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nobody is left to be told.
        _drop_output()
        sys.exit(2)
    except NotRestored as error:
        print(f"vlmdoctor: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _FULL:
            _drop_output()
            print(f"vlmdoctor: can't write: {error.strerror}.", file=sys.stderr)
        elif is_user_error(error):
            print(f"vlmdoctor: {error}", file=sys.stderr)
            if error.__cause__ is not None and {"-v", "--verbose"} & set(arguments):
                traceback.print_exception(error.__cause__)
        else:
            traceback.print_exc()
            print(
                "vlmdoctor: this is a fault of vlmdoctor itself, not of your model; please report it with "
                "the lines above.",
                file=sys.stderr,
            )
        sys.exit(2)


def _drop_output() -> None:
    """Sends what is still to be written to nowhere: Python would fail once more when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _speak_unicode() -> None:
    """Makes the standard streams take every character: a locale such as POSIX allows for ASCII only.

    Terminals read UTF-8 nearly everywhere, whatever the locale says. A stream that was closed is replaced.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123
            continue
        if not hasattr(stream, "reconfigure"):
            continue
        try:
            "✓✗×…─█".encode(stream.encoding)
        except UnicodeError:
            stream.reconfigure(encoding="utf-8")
        # A name of a file, or a variable, may hold bytes that are no text at all.
        stream.reconfigure(errors="backslashreplace")


def is_user_error(error: BaseException) -> bool:
    """Whether the message is for the user as it is: vlmdoctor's own kind, or the bundled trainer's."""
    with contextlib.suppress(ImportError):
        from minivlm.errors import UserError as TrainerUserError

        return isinstance(error, UserError | TrainerUserError)
    return isinstance(error, UserError)
