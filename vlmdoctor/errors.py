"""Errors that are not the tool's own fault."""

from __future__ import annotations

from vlmdoctor.plain_text import MOST_SENTENCE, plain_line


class UserError(Exception):
    """Something the user gave can't be used.

    The message is one plain sentence: what is wrong, where, and what to do about it. Command lines
    print it on standard error and exit with status 2; a traceback is never shown for it. What it quotes
    of files, names and exceptions is made plain.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(plain_line(str(message), MOST_SENTENCE))

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class NotBuilt(UserError):
    """No model can be built from a configuration; the message says what transformers or the model raised.

    Attributes:
        raised: Type and first line of what was raised, such as `ValueError: …`.
    """

    def __init__(self, message: str, raised: str) -> None:
        super().__init__(message)
        self.raised = plain_line(raised)


class Unavailable(Exception):
    """A probe can't gather its evidence here; the message is the reason shown beside the skipped rules."""

    def without_frames(self) -> Unavailable:
        """This reason to be kept: its frames would keep what they hold alive, such as the graph of a loss."""
        self.__traceback__ = self.__cause__ = self.__context__ = None
        return self


class WouldMove(BaseException):
    """A probe was about to move something of the user's that can't be put back; the message says what.

    No Exception, so that neither a probe nor the user's code takes it for a failure of the model. The engine
    makes an `Unavailable` of it.
    """


class NotProven(Unavailable):
    """A repair did not find the cause; the message is what it saw on the way, which goes into the finding."""


class NotRestored(BaseException):
    """Weights of the user's model could not be put back; the message names them.

    No Exception: neither a probe's guard nor a loop's `except Exception` may go on with a model whose weights
    are lost. Command lines print the message and exit with status 2.
    """


class FindingsError(Exception):
    """Raised by `Report.raise_for_findings`; the message is their cards and the summary line."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows instead of a traceback."""
        return [str(self)]
