"""Where the project's own files set variables that matter to training, or keep it on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

DEPTH = "static"
GIVEN = "no source files were given"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A place that sets an environment variable.

    Attributes:
        file: The file, as it was named or found.
        line: The line in the file, or in the cell of a notebook; counted from 1.
        name: The variable.
        value: What it is set to; None where that is not a constant.
        code: The text of the line.
        cell: The cell of a notebook, counted from 1.
        condition: The condition or the uncalled function that it stands under; None where it always runs.
        undone: Whether a later line of the file sets or removes the variable again.
        trains: Whether the file trains: it takes optimizer steps, uses a trainer, or launches training.
        uses_torch: Whether the file uses torch or a library on top of it.
        in_tests: Whether the file belongs to tests.
        late: What ran before in the file, so that the setting has no effect any more, in words.
    """

    file: str
    line: int
    name: str
    value: str | None
    code: str
    cell: int | None = None
    condition: str | None = None
    undone: bool = False
    trains: bool = False
    uses_torch: bool = False
    in_tests: bool = False
    late: str | None = None


@dataclass(frozen=True, kw_only=True)
class OnCpu:
    """A place that keeps a training on the CPU, whatever GPUs there are.

    Attributes:
        file, line, cell, code, in_tests: As in `Setting`.
        what: What it does, in words.
    """

    file: str
    line: int
    what: str
    code: str
    cell: int | None = None
    in_tests: bool = False


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A start of the deepspeed launcher that chooses GPUs itself, while CUDA_VISIBLE_DEVICES does so too.

    Attributes:
        file, line, code: As in `Setting`.
        option: The launcher's option.
        value: The variable's value.
    """

    file: str
    line: int
    code: str
    option: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was found in the files.

    Attributes:
        files: How many were read.
        settings: Where they set variables.
        unread: (file, reason) of those that could not be read.
        on_cpu: Where they keep a training on the CPU.
        launches: Where a launcher and CUDA_VISIBLE_DEVICES both choose.
    """

    files: int
    settings: tuple[Setting, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()
    on_cpu: tuple[OnCpu, ...] = ()
    launches: tuple[Launch, ...] = ()
