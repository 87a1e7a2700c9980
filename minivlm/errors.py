"""The one error that is the user's to mend."""


class UserError(Exception):
    """Something the user gave can't be used.

    The message is one plain sentence: what is wrong, where, and what to do about it. Command lines
    print it on standard error and exit with status 2; a traceback is never shown for it.
    """
