"""An exception inside the user's model, as plain facts: which module, which line, which tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TensorFact:
    """A tensor's outside: its name in the source, shape, dtype and device."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    device: str

    def __str__(self) -> str:
        return f"{self.name} {list(self.shape)} {self.dtype} on {self.device}"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An exception that the user's model raised.

    Attributes:
        type: The exception's class.
        message: Its text, at most 600 characters.
        module: Canonical name of the innermost module that was running; None outside of any module.
        module_class: That module's class.
        file: Where it was raised: in the user's own code, else in a library other than torch.
        line: The line in `file`.
        function: The function there.
        code: The text of that line.
        values: The tensors among the local variables where it was raised.
        inputs: The tensors among the arguments of the innermost module, and its weight.
    """

    type: str
    message: str
    module: str | None = None
    module_class: str | None = None
    file: str | None = None
    line: int | None = None
    function: str | None = None
    code: str | None = None
    values: tuple[TensorFact, ...] = ()
    inputs: tuple[TensorFact, ...] = ()
