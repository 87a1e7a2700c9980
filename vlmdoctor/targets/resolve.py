"""From what the user typed to what is examined: minivlm, a checkpoint, or a function of theirs."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vlmdoctor import boundary
from vlmdoctor.errors import UserError
from vlmdoctor.plain_text import raised
from vlmdoctor.shadowing import shadowing
from vlmdoctor.subject import Subject

if TYPE_CHECKING:
    from vlmdoctor.targets.weightless import Weightless

LARGEST = 10_000_000  # bytes of a source file whose functions are looked up
FORMS = "give minivlm[:preset], a folder with config.json, package.module:factory or path/to/file.py:factory"


@dataclass(frozen=True)
class Target:
    """A resolved target.

    Attributes:
        subject: What is examined.
        text: What the user typed.
        facts: What is to be told about how it was made, such as where the weights came from.
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


def resolve(
    text: str,
    *,
    trust_remote_code: bool = False,
    weightless: Weightless | None = None,
    makes_batch: bool = True,
    budget: float | None = None,
) -> Target:
    """Builds what `text` names; what the user's code prints goes to standard error.

    Given `weightless`, nothing of the size of weights is allocated: for a dry run. With `makes_batch`, a
    model of transformers that comes without a batch gets one that is made up: good for trying it, and no
    sign of what its user means. `budget` bounds the seconds that a folder's own processor may take for that.

    Raises:
        UserError: It can't be built; the exception of the user's code, if any, is its `__cause__`.
    """
    with redirect_stdout(sys.stderr):
        name, _, rest = text.partition(":")
        if name == "minivlm":
            from vlmdoctor.targets.bundled import bundled

            return bundled(text, rest)
        path = boundary.expanded(text)
        if boundary.is_dir(path) or path.suffix == ".json":
            from vlmdoctor.targets.checkpoint import checkpoint

            return checkpoint(text, path, trust_remote_code, weightless, makes_batch, budget)
        if path.suffix == ".py":
            raise _no_factory_named(path)
        place, colon, factory = text.rpartition(":")
        if not colon or not place or not factory:
            raise UserError(f"there is no target '{text}': {FORMS}.")
        with weightless.building() if weightless is not None else nullcontext():
            if place.endswith(".py"):
                target = _from_file(text, boundary.expanded(place), factory)
            else:
                with _first_on_path(boundary.current_folder()):
                    target = _from_module(text, _import(text, place), factory)
        if weightless is not None or not makes_batch:
            return target
        from vlmdoctor.targets.made_batch import with_batch

        return with_batch(target)


def subject_of(made: Any, source: str) -> Subject:
    """The Subject in what a factory returned: a module, a tuple with batch and optimizer, or a Subject."""
    from torch import nn

    from vlmdoctor.integrations.adapting import adapted

    if isinstance(made, Subject):
        subject = made
    elif _is_model(made):
        subject = Subject(made)
    elif isinstance(made, tuple) and len(made) in (2, 3) and _is_model(made[0]):
        subject = Subject(*made[:2], optimizer=made[2] if len(made) == 3 else None)
    else:
        raise UserError(
            f"{source} returned {_described(made)}; it should return a module, (model, batch), "
            f"(model, batch, optimizer), a Trainer or a vlmdoctor.Subject."
        )
    subject = adapted(subject, source)
    if not isinstance(subject.model, nn.Module) and callable(subject.model):
        subject.model = _called(subject.model, f"the model of {source}")
        subject = adapted(subject, source)
    if not isinstance(subject.model, nn.Module):
        raise UserError(f"the model of {source} is {_described(subject.model)}, not a torch module.")
    return subject


def _is_model(value: Any) -> bool:
    from torch import nn

    from vlmdoctor.integrations.adapting import is_adaptable

    return isinstance(value, nn.Module) or is_adaptable(value)


def _described(value: Any) -> str:
    if value is None:
        return "nothing (None)"
    if isinstance(value, tuple):
        return f"a tuple of {', '.join(type(part).__name__ for part in value) or 'nothing'}"
    return f"an object of type {type(value).__name__}"


def _no_factory_named(path: Path) -> UserError:
    if not boundary.is_file(path):
        return UserError(f"there is no file {path}.")
    functions = _functions_in(path)
    hint = f"; it has {', '.join(functions)}" if functions else ""
    example = functions[0] if functions else "build"
    return UserError(f"name the function of {path} that builds the model, as in {path}:{example}{hint}.")


def _functions_in(path: Path) -> list[str]:
    try:
        tree = ast.parse(boundary.read_text(path, LARGEST))
    except (UserError, SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    likely = [name for name in names if re.search(r"build|factory|model|subject", name) and name[0] != "_"]
    return [*likely, *(name for name in names if name not in likely and name[0] != "_")][:6]


def _from_file(text: str, path: Path, factory: str) -> Target:
    if not boundary.is_file(path):
        raise UserError(f"there is no file {path}.")
    # Its own name, so that it can neither shadow a package nor be taken for one.
    name = f"vlmdoctor_target_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UserError(f"{path} can't be loaded as Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    with _first_on_path(path.resolve().parent):
        with blamed_on_user(str(path)):
            spec.loader.exec_module(module)
        return _from_module(text, module, factory)


def _import(text: str, name: str) -> ModuleType:
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    except BaseException as error:
        if type(error) is KeyboardInterrupt:
            raise
        raise UserError(f"importing {name} raised {_told(error)}.") from error
    if found is None:
        raise UserError(f"there is no module '{name}' to import for '{text}': {FORMS}.")
    with blamed_on_user(name):
        return importlib.import_module(name)


def _from_module(text: str, module: ModuleType, factory: str) -> Target:

    place = text.rpartition(":")[0]
    made: Any = module
    for part in factory.split("."):
        with blamed_on_user(place):
            there = hasattr(made, part)
        if not there:
            names = [name for name, value in vars(module).items() if callable(value) and name[0] != "_"]
            close = difflib.get_close_matches(part, names, n=1, cutoff=0.5)
            own = [n for n in names if getattr(vars(module)[n], "__module__", "") == module.__name__]
            hint = (
                f"did you mean '{close[0]}'?" if close else f"it has {', '.join(own[:8]) or 'no function'}."
            )
            raise UserError(f"{text.rpartition(':')[0]} has no '{factory}'; {hint}")
        made = getattr(made, part)
    source = f"{factory}() of {place}"
    with blamed_on_user(source, ours=False):
        is_made = isinstance(made, Subject | tuple) or _is_model(made)
    if not is_made:
        if not callable(made):
            raise UserError(
                f"'{factory}' of {text.rpartition(':')[0]} is {_described(made)}, not a function."
            )
        made = _called(made, source)
    file = getattr(module, "__file__", None)
    with blamed_on_user(source, ours=False):
        subject = subject_of(made, source)
    return Target(
        subject,
        text,
        file=Path(file) if file else None,
        missing_batch=f"{source} gave no batch",
    )


def _called(factory: Any, source: str) -> Any:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except Exception:  # of an object of the user's own, whose attributes may do anything
        parameters = []
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in variable]
    if needed:
        raise UserError(
            f"{source} needs arguments ({', '.join(needed)}); name a function that can be called without any."
        )
    with blamed_on_user(source):
        return factory()


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def blamed_on_user(source: str, *, ours: bool = True) -> Iterator[None]:
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
        raise UserError(f"{source} raised {_told(error)}.") from error


def _raised_here(error: BaseException) -> bool:
    innermost = error.__traceback__
    while innermost is not None and innermost.tb_next is not None:
        innermost = innermost.tb_next
    own = str(Path(__file__).parent)
    return innermost is not None and innermost.tb_frame.f_code.co_filename.startswith(own)


def _told(error: BaseException) -> str:
    return raised(error, 1000).rstrip(".") + _place(error)


def _place(error: BaseException) -> str:
    """` (file:line)` of the innermost frame outside of libraries and of this package's own machinery."""
    if shadowing() is not None:
        return ""  # torch itself is not what it should be
    from vlmdoctor.evidence.raised import frames_of, place_of, shown_path

    place = place_of(frames_of(error))
    return f" ({shown_path(place.file)}:{place.line})" if place else ""
