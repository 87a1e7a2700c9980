"""From what the user typed to what is examined: minivlm, a checkpoint, or a function of theirs."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from vlmdoctor import boundary
from vlmdoctor.errors import UserError
from vlmdoctor.subject import Subject
from vlmdoctor.targets.factory import called, described, is_model, subject_of
from vlmdoctor.targets.target import Target, in_one_line, user_code_errors

if TYPE_CHECKING:
    from vlmdoctor.targets.meta_target import MetaTarget

LARGEST = 10_000_000  # bytes of a source file whose functions are looked up
FORMS = "give minivlm[:preset], a folder with config.json, package.module:factory or path/to/file.py:factory"


def resolve(
    text: str,
    *,
    trust_remote_code: bool = False,
    weightless: MetaTarget | None = None,
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
        if (repository := _on_the_hub(text)) is not None:
            raise UserError(_to_download(text, repository))
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
        from vlmdoctor.targets.default_batch import with_batch

        return with_batch(target)


# An address of the Hub, or what it calls a model: owner and name.
_HUB = re.compile(r"(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/(?=[^/]+/)", re.IGNORECASE)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def _on_the_hub(text: str) -> str | None:
    """Owner and name of the model on the Hub that the text may mean; None where it means none."""
    address = _HUB.match(text)
    name = "/".join(text[address.end() :].split("/")[:2]) if address else text
    name = re.split(r"[?#@]", name)[0]
    if _REPOSITORY.fullmatch(name) is None or (not address and name.endswith(".py")):
        return None
    # Below a folder that is there, it is a path with a mistake in it.
    return name if address or not boundary.is_dir(boundary.expanded(name.split("/")[0])) else None


def _to_download(text: str, repository: str) -> str:
    folder = repository.split("/")[1]
    return (
        f"there is no folder '{text}', and nothing is downloaded here; for a model of the Hub, get its "
        f"configuration with 'hf download {repository} config.json --local-dir {folder}' and check {folder}."
    )


def _no_factory_named(path: Path) -> UserError:
    if not boundary.is_file(path):
        return UserError(f"there is no file {path}.")
    functions = _functions_in(path)
    hint = f"; it has {', '.join(functions)}" if functions else ""
    example = functions[0] if functions else "build"
    return UserError(f"name the function of {path} that builds the model, as in {path}:{example}{hint}.")


def _functions_in(path: Path) -> list[str]:
    try:
        tree = ast.parse(boundary.read_text(path, LARGEST).removeprefix("\ufeff"))
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
        with user_code_errors(str(path)):
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
        raise UserError(f"importing {name} raised {in_one_line(error)}.") from error
    if found is None:
        raise UserError(f"there is no module '{name}' to import for '{text}': {FORMS}.")
    with user_code_errors(name):
        return importlib.import_module(name)


def _from_module(text: str, module: ModuleType, factory: str) -> Target:

    place = text.rpartition(":")[0]
    made: Any = module
    for part in factory.split("."):
        with user_code_errors(place):
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
    with user_code_errors(source, ours=False):
        is_made = isinstance(made, Subject | tuple) or is_model(made)
    if not is_made:
        if not callable(made):
            raise UserError(f"'{factory}' of {text.rpartition(':')[0]} is {described(made)}, not a function.")
        made = called(made, source)
    file = getattr(module, "__file__", None)
    with user_code_errors(source, ours=False):
        subject = subject_of(made, source)
    return Target(
        subject,
        text,
        file=Path(file) if file else None,
        missing_batch=f"{source} gave no batch",
    )


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = before
