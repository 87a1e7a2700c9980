"""Rules: pure functions from evidence to findings, found by being files under `vlmdoctor/rules/`."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.finding import Finding

Example = Callable[[], Any]


@dataclass
class Rule:
    """A rule with what the engine needs to know about it.

    Attributes:
        name: How people know it, such as `rope-table-dim`.
        code: Its permanent alias, an area prefix and a number, such as `ROPE101`.
        function: The rule itself; its annotated parameters are the evidence that it needs.
        explains: Names of rules whose findings are mere symptoms when this one fires.
        bad: Examples in which the rule must fire. An example returns a `Subject` to be probed, or
            evidence (one object or several).
        good: Examples in which no rule at all may fire.
    """

    name: str
    code: str
    function: Callable[..., Iterable[Finding]]
    explains: tuple[str, ...] = ()
    bad_examples: list[Example] = field(default_factory=list)
    good_examples: list[Example] = field(default_factory=list)

    def bad(self, example: Example) -> Example:
        """Registers an example in which this rule must fire."""
        self.bad_examples.append(example)
        return example

    def good(self, example: Example) -> Example:
        """Registers an example in which no rule may fire."""
        self.good_examples.append(example)
        return example

    @property
    def doc(self) -> str:
        """The rule's page: its docstring."""
        return inspect.getdoc(self.function) or ""

    @property
    def summary(self) -> str:
        """The first line of the page."""
        return self.doc.partition("\n")[0]

    @property
    def area(self) -> str:
        """The letters of the code: ENV, SRC, ROPE, GRAD and so on."""
        return self.code.rstrip("0123456789")

    @functools.cached_property
    def requirements(self) -> dict[str, tuple[type, bool]]:
        """Parameter name -> (evidence class, whether the rule can do without it: `X | None`)."""
        hints = typing.get_type_hints(self.function)
        found = {}
        for parameter in inspect.signature(self.function).parameters:
            hint = hints[parameter]
            if isinstance(hint, types.UnionType):
                needed = next(part for part in typing.get_args(hint) if part is not type(None))
                found[parameter] = (needed, True)
            else:
                found[parameter] = (hint, False)
        return found


def rule(name: str, code: str, *, explains: Iterable[str] = ()) -> Callable[[Callable[..., Any]], Rule]:
    """Makes a rule of a generator function whose annotated parameters name its evidence."""

    def decorate(function: Callable[..., Iterable[Finding]]) -> Rule:
        return Rule(name, code, function, tuple(explains))

    return decorate


@functools.cache
def all_rules() -> tuple[Rule, ...]:
    """Every rule under `vlmdoctor/rules/`, in the order of their codes."""
    return rules_in()


@functools.cache
def rules_in(*areas: str) -> tuple[Rule, ...]:
    """The rules of some areas, the folders under `vlmdoctor/rules/`, without importing the others."""
    found: dict[str, Rule] = {}
    for area in areas or ("",):
        package = importlib.import_module(f"vlmdoctor.rules.{area}".rstrip("."))
        for module_info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            module = importlib.import_module(module_info.name)
            for value in vars(module).values():
                if isinstance(value, Rule) and value.function.__module__ == module.__name__:
                    taken = found.setdefault(value.code, value)
                    if taken is not value:
                        raise ValueError(f"{value.code} is the code of {taken.name} and of {value.name}")
    return tuple(found[code] for code in sorted(found))


def find_rule(name: str) -> Rule:
    """The rule with this name or code; raises `UserError` with a suggestion where there is none."""
    for candidate in all_rules():
        if name.lower() in (candidate.name, candidate.code.lower()):
            return candidate
    raise UserError(f"there is no rule '{name}'{_suggestion(name)}; 'vlmdoctor rules' lists them all.")


def select_rules(
    rules: Iterable[Rule],
    select: Iterable[str] = (),
    extend_select: Iterable[str] = (),
    ignore: Iterable[str] = (),
) -> list[Rule]:
    """The rules that `--select`, `--extend-select` and `--ignore` leave, as ruff resolves them.

    Each selector is a name, a code, a code prefix or ALL. The more specific selector wins; at the
    same specificity ignoring wins. With no `select`, `rules` (the command's own) are selected.
    """
    defaults = list(rules)
    select, extend_select, ignore = list(select), list(extend_select), list(ignore)
    for selector in (*select, *extend_select, *ignore):
        if not any(_specificity(selector, candidate) for candidate in all_rules()):
            raise UserError(
                f"'{selector}' selects no rule{_suggestion(selector)}; give a rule's name, its code, "
                f"a prefix of codes such as GRAD, or ALL."
            )
    chosen = []
    for candidate in all_rules():
        wanted = max((_specificity(s, candidate) for s in (*select, *extend_select)), default=0)
        if not select and candidate in defaults:
            wanted = max(wanted, 1)
        unwanted = max((_specificity(s, candidate) for s in ignore), default=0)
        if wanted > unwanted:
            chosen.append(candidate)
    return chosen


def _specificity(selector: str, candidate: Rule) -> int:
    if not selector.strip():
        return 0  # every code begins with it
    if selector.upper() == "ALL":
        return 1
    if selector.lower() in (candidate.name, candidate.code.lower()):
        return 100
    if candidate.code.startswith(selector.upper()):
        return 1 + len(selector)
    return 0


def _suggestion(name: str) -> str:
    known = [text for candidate in all_rules() for text in (candidate.name, candidate.code, candidate.area)]
    by_lower = {text.lower(): text for text in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean '{by_lower[close[0]]}'?)" if close else ""
