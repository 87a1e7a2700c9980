"""Rules: pure functions from evidence to findings, found by being files under `vlmdoctor/rules/`."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import pkgutil
import re
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.finding import Finding

Example = Callable[[], Any]
_LINK = re.compile(r"\]\((https://[^)\s]+)\)")


@dataclass
class Rule:
    """A rule with what the engine needs to know about it.

    Attributes:
        name: How people know it, such as `rope-table-dim`.
        code: Its permanent alias, an area prefix and a number, such as `ROPE101`.
        function: The rule itself; its annotated parameters are the evidence that it needs.
        explains: Names of rules whose findings are mere symptoms when this one fires.
        formerly: Names and codes that it went by before, or that went into it; they go on selecting it.
        bad: Examples in which the rule must fire. An example returns a `Subject` to be probed, or
            evidence (one object or several).
        good: Examples in which no rule at all may fire.
    """

    name: str
    code: str
    function: Callable[..., Iterable[Finding]]
    explains: tuple[str, ...] = ()
    formerly: tuple[str, ...] = ()
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

    @functools.cached_property
    def links(self) -> tuple[str, ...]:
        """What its page links to."""
        return tuple(dict.fromkeys(_LINK.findall(self.doc)))

    @property
    def area(self) -> str:
        """The letters of the code: ENV, SRC, ROPE, GRAD and so on."""
        return self.code.rstrip("0123456789")

    @property
    def codes(self) -> tuple[str, ...]:
        """Its code, and those of the rules that went into it."""
        return (self.code, *(known for known in self.formerly if known.isupper()))

    def is_called(self, text: str) -> bool:
        """Whether `text` is its name or code, today or before."""
        return text.lower() in {known.lower() for known in (self.name, self.code, *self.formerly)}

    @property
    def kinds(self) -> set[type]:
        """The classes of evidence that it looks at, optional ones among them."""
        return {kind for kind, _ in self.requirements.values()}

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


def rule(
    name: str, code: str, *, explains: Iterable[str] = (), formerly: Iterable[str] = ()
) -> Callable[[Callable[..., Any]], Rule]:
    """Makes a rule of a generator function whose annotated parameters name its evidence."""

    def decorate(function: Callable[..., Iterable[Finding]]) -> Rule:
        return Rule(name, code, function, tuple(explains), tuple(formerly))

    return decorate


@functools.cache
def all_rules() -> tuple[Rule, ...]:
    """Every rule under `vlmdoctor/rules/`, in the order of their codes."""
    return rules_in()


@functools.cache
def rules_in(*areas: str) -> tuple[Rule, ...]:
    """The rules of some areas, the folders under `vlmdoctor/rules/`, without importing the others.

    A file whose name begins with an underscore holds no rule.
    """
    found: dict[str, Rule] = {}
    names: dict[str, Rule] = {}
    for area in areas or ("",):
        package = importlib.import_module(f"vlmdoctor.rules.{area}".rstrip("."))
        for module_info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if module_info.name.rpartition(".")[2].startswith("_"):
                continue  # what several rules share
            module = importlib.import_module(module_info.name)
            for value in vars(module).values():
                if isinstance(value, Rule) and value.function.__module__ == module.__name__:
                    found.setdefault(value.code, value)
                    for known in (value.name, value.code, *value.formerly):
                        taken = names.setdefault(known, value)
                        if taken is not value:
                            what = "code" if known.isupper() else "name"
                            raise ValueError(f"{known} is the {what} of {taken.name} and of {value.name}")
    return tuple(found[code] for code in sorted(found))


def answerable(given: Iterable[type], rules: Iterable[Rule] | None = None) -> list[Rule]:
    """The rules (of `rules`, or of all) that use one of the given kinds of evidence and need no other."""
    given = set(given)
    return [
        candidate
        for candidate in (all_rules() if rules is None else rules)
        if candidate.kinds & given
        and all(optional or kind in given for kind, optional in candidate.requirements.values())
    ]


def find_rule(name: str) -> Rule:
    """The rule with this name or code, of today or before.

    Raises:
        UserError: There is none; with a suggestion.
    """
    for candidate in all_rules():
        if candidate.is_called(name):
            return candidate
    raise UserError(f"there is no rule '{name}'{suggestion(name)}; 'vlmdoctor rules' lists them all.")


def of_area(letters: str) -> list[Rule]:
    """The rules of an area such as GRAD, whichever case it is written in; none for other texts."""
    return [candidate for candidate in all_rules() if candidate.area == letters.upper()]


def area_title(letters: str) -> str:
    """What the rules of an area are about: `gradients`."""
    module = next(one.function.__module__ for one in of_area(letters))
    folder = importlib.import_module(module.rpartition(".")[0])
    return (folder.__doc__ or "").strip().rstrip(".").removeprefix("Rules on ").removeprefix("Rules about ")


def renamed(selectors: Iterable[str]) -> dict[str, str]:
    """Old name or code -> name of the rule that it selects today, for those of `selectors` that are old."""
    selectors = list(selectors)
    rules = all_rules() if selectors else ()
    return {
        selector: candidate.name
        for selector in selectors
        for candidate in rules
        if selector.lower() in map(str.lower, candidate.formerly)
    }


def select_rules(
    rules: Iterable[Rule],
    select: Iterable[str] | str = (),
    extend_select: Iterable[str] | str = (),
    ignore: Iterable[str] | str = (),
) -> list[Rule]:
    """The rules that `--select`, `--extend-select` and `--ignore` leave, as ruff resolves them.

    Each selector is a name, a code, a code prefix or ALL. The more specific selector wins; at the
    same specificity ignoring wins. With no `select`, `rules` (the command's own) are selected.
    """
    defaults = list(rules)
    select, extend_select, ignore = map(_listed, (select, extend_select, ignore))
    for selector in (*select, *extend_select, *ignore):
        if not any(_specificity(selector, candidate) for candidate in all_rules()):
            raise UserError(
                f"'{selector}' selects no rule{suggestion(selector)}; give a rule's name, its code, "
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


def _listed(selectors: Iterable[str] | str) -> list[str]:
    """Selectors as a list: one text is one selector, or several with commas between them."""
    texts = selectors.split(",") if isinstance(selectors, str) else selectors
    return [text.strip() for text in texts]


def _specificity(selector: str, candidate: Rule) -> int:
    if not selector.strip():
        return 0  # every code begins with it
    if selector.upper() == "ALL":
        return 1
    if candidate.is_called(selector):
        return 100
    if any(code.startswith(selector.upper()) for code in candidate.codes):
        return 1 + len(selector)
    return 0


def suggestion(name: str) -> str:
    """` (did you mean 'X'?)` for the nearest name, code or area; empty where none is near."""
    known = [text for candidate in all_rules() for text in (candidate.name, candidate.code, candidate.area)]
    by_lower = {text.lower(): text for text in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f" (did you mean '{by_lower[close[0]]}'?)" if close else ""
