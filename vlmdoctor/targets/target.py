"""What the user typed, once it is built; and what the user's own code raised on the way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.plain_text import raised
from vlmdoctor.shadowing import shadowing
from vlmdoctor.subject import Subject


@dataclass(frozen=True)
class Target:
    """A resolved target.

    Attributes:
        subject: What is examined.
        text: What the user typed.
        facts: What is to be reported about how it was made, such as where the weights came from.
        file: The user's source file, where the target names one.
        missing_batch: Why there is no batch, where there is none.
        raised: What the model raised when a batch was to be made for it, such as `ValueError: …`.
    """

    subject: Subject
    text: str
    facts: dict[str, Any] = field(default_factory=dict)
    file: Path | None = None
    missing_batch: str | None = None
    raised: str | None = None


@contextmanager
def user_code_errors(source: str, *, ours: bool = True) -> Iterator[None]:
    """Turns whatever the user's code raises into one sentence with the place; Ctrl-C passes.

    Without `ours`, what was raised by a line of vlmdoctor's own is a fault of its own, and passes.
    """
    try:
        yield
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(
            f"{source} is not valid Python: {error.msg} ({error.filename}:{error.lineno})."
        ) from error
    except SystemExit as error:
        code = error.code if isinstance(error.code, int | None) else raised(error)
        raise UserError(f"{source} ended the program (exit status {code}){_place(error)}.") from error
    except BaseException as error:
        if type(error) is KeyboardInterrupt or (not ours and _raised_here(error)):
            raise
        raise UserError(f"{source} raised {in_one_line(error)}.") from error


def _raised_here(error: BaseException) -> bool:
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    own = str(Path(__file__).parent)
    return innermost is not None and innermost.tb_frame.f_code.co_filename.startswith(own)


def in_one_line(error: BaseException) -> str:
    return raised(error, 1000).rstrip(".") + _place(error)


def _place(error: BaseException) -> str:
    """` (file:line)` of the innermost frame outside of libraries and of this package's own machinery."""
    if shadowing() is not None:
        return ""  # torch itself is not what it should be
    from vlmdoctor.probes.failure.traceback import frames_of, place_of, shown_path

    place = place_of(frames_of(error))
    return f" ({shown_path(place.file)}:{place.line})" if place else ""
