"""What came of an input, as it was seen from outside."""

from __future__ import annotations

from dataclasses import dataclass

KEPT = 200_000  # bytes of a stream that are looked at


@dataclass(frozen=True)
class Outcome:
    """What was seen.

    Attributes:
        status: The exit status; negative for a signal, None where it was still running at its end.
        stdout, stderr: What was written, the first KEPT bytes.
        seconds: How long it took.
        megabytes: The most memory, above what the interpreter had at the start.
        changed: (path below the sandbox, `added`, `removed` or `changed`) of all that is different.
        read: Baits that were read.
        events: What the audit hook saw: connections, programs, imports and writing outside the sandbox.
        left_running: How many processes outlived the command.
        written: The text of the file that `--output-file` named, where there is one.
        stack: Where it was when it was ended, or where it raised.
    """

    status: int | None
    stdout: bytes
    stderr: bytes
    seconds: float
    megabytes: float
    changed: tuple[tuple[str, str], ...] = ()
    read: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    left_running: int = 0
    written: bytes | None = None
    stack: str = ""
