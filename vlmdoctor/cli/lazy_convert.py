"""Typer commands that do not pay for converting options that nobody gave.

Typer converts values with pydantic, whose import takes longer than all that `check-env` does, even where
there is nothing to convert.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand, TyperGroup

from minivlm.help_page import HelpPage
from vlmdoctor.errors import NotRestored, UserError
from vlmdoctor.plain_text import plain_line, raised


class _Quick:
    """Leaves conversion to Typer only where a value was given that is to become something else.

    Attributes:
        texts: Parameters that the command takes as the texts that they are.
    """

    texts: tuple[str, ...] = ()

    def get_params(self, ctx: Any) -> list[Any]:
        parameters = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if not parameter.required and "process_value" not in vars(parameter):
                parameter.process_value = _processing(parameter, self.texts)
        return parameters


def _processing(parameter: Any, texts: tuple[str, ...]) -> Any:
    convert = parameter.process_value

    def process_value(context: Any, value: Any) -> Any:
        given = value is not None and value != () and not isinstance(value, float)
        if given and parameter.name not in texts:
            return convert(context, value)
        return value if parameter.callback is None else parameter.callback(context, parameter, value)

    return process_value


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """What Typer quotes of a wrong command line is plain, and coloured for a terminal only."""
    try:
        yield
    except Exception as error:
        message = getattr(error, "message", None)
        if hasattr(error, "format_message") and isinstance(message, str):
            vars(error)["message"] = plain_line(message)
            from typer import rich_utils

            rich_utils.FORCE_TERMINAL = None  # else a job's log gets colours
        raise


class Ended(Exception):
    """What Typer would answer with a status of its own, which ours gives another meaning; see `__cause__`."""


class QuickGroup(_Quick, HelpPage, TyperGroup):
    """The group of the commands."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the options before the command; what is quoted of a wrong one is made plain."""
        with _plainly():
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; an interruption and a reader that has gone are not left to Typer."""
        try:
            with _plainly():
                return super().invoke(ctx)
        except (KeyboardInterrupt, EOFError, OSError) as error:
            raise Ended from error
        except (Exception, NotRestored):
            raise
        except BaseException as error:
            # Rich ends the program by itself where the reader of its output has gone (`| head`).
            if isinstance(gone := error.__context__, BrokenPipeError):
                raise Ended from gone
            # No command ends in this way by itself: the user's code did.
            raise UserError(f"what was to be examined ended the program: {raised(error)}.") from error


def quick_command(texts: tuple[str, ...], examples: tuple[tuple[str, str], ...] = ()) -> type[TyperCommand]:
    """The class of a command; `texts` are its parameters that need no conversion at all."""
    return type("QuickCommand", (_Quick, HelpPage, TyperCommand), {"texts": texts, "examples": examples})
