"""Errors that are not the tool's own fault."""


class UserError(Exception):
    """Something the user gave can't be used.

    The message is one plain sentence: what is wrong, where, and what to do about it. Command lines
    print it on standard error and exit with status 2; a traceback is never shown for it.
    """


class NotBuilt(UserError):
    """No model can be built from a configuration; the message says what transformers or the model raised.

    Attributes:
        raised: Type and first line of what was raised, such as `ValueError: …`.
    """

    def __init__(self, message: str, raised: str) -> None:
        super().__init__(message)
        self.raised = raised


class Unavailable(Exception):
    """A probe can't gather its evidence here; the message is the reason shown beside the skipped rules."""


class WouldMove(BaseException):
    """A probe was about to move something of the user's that can't be put back; the message says what.

    No Exception, so that neither a probe nor the user's code takes it for a failure of the model. The engine
    makes an `Unavailable` of it.
    """


class NotProven(Unavailable):
    """A repair did not find the cause; the message is what it saw on the way, which goes into the finding."""


class FindingsError(Exception):
    """Raised by `Report.raise_for_findings`; the message lists the findings."""
