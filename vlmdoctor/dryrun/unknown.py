"""What a dry run does not know: the value of anything that a weight was part of."""

from __future__ import annotations

from typing import Any


class ValueUnknown(RuntimeError):
    """An operator needs a value that is abstract.

    Attributes:
        operator: Its name, such as `aten.nonzero`.
    """

    def __init__(
        self, operator: str, why: str = "needs the value of a tensor that has none in a dry run"
    ) -> None:
        super().__init__(f"{operator} {why}")
        self.operator = operator


class UnknownScalar(float):
    """What `.item()` of an abstract float gives: arithmetic and logging work, decisions do not.

    Most training loops read their loss for a log. Its content is 1, so that logarithms and divisions go on.
    """

    def __new__(cls) -> UnknownScalar:
        return super().__new__(cls, 1.0)

    def __repr__(self) -> str:
        return "nan"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(float("nan"), spec)

    def __round__(self, digits: Any = None) -> Any:
        return self._decides() if digits is None else self

    def __hash__(self) -> int:
        return id(self)

    def _reckons(self, *others: Any) -> UnknownScalar:
        return UnknownScalar()

    def _decides(self, *others: Any) -> Any:
        raise ValueUnknown("Tensor.item", "gives a number without a value in a dry run, and it is decided on")

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _reckons
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __mod__ = __rmod__ = _reckons
    __neg__ = __pos__ = __abs__ = _reckons
    __bool__ = __int__ = __trunc__ = __floor__ = __ceil__ = __floordiv__ = __rfloordiv__ = _decides
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = is_integer = _decides
