"""The command-line options of a training run, made from the fields of TrainConfig; no torch is imported.

    @with_train_options
    def command(config: TrainConfig, watch: Annotated[bool, typer.Option()] = True) -> None: ...

is a typer command with `--watch`, and with every field of TrainConfig as an option.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from minivlm.errors import UserError
from minivlm.train_config import TrainConfig

FOLDER = "run_folder"


def train_options() -> list[inspect.Parameter]:
    """A keyword parameter for each field, and the run folder as an argument (`train --resume runs/tiny`)."""
    hints = typing.get_type_hints(TrainConfig)
    folder = Annotated[str | None, typer.Argument(help="The run folder, as with --out.", metavar="FOLDER")]
    return [
        _parameter(FOLDER, folder, None),
        *(
            _parameter(f.name, _annotated(f, hints[f.name]), _default(f))
            for f in dataclasses.fields(TrainConfig)
        ),
    ]


def config_from(values: Mapping[str, Any]) -> TrainConfig:
    """The config of parsed options, as `train_options` names them.

    Raises:
        UserError: The run folder was given twice.
    """
    values = dict(values)
    folder = values.pop(FOLDER, None)
    if folder is not None:
        if values.get("out") is not None:
            raise UserError(f"the run folder was given twice, as '{folder}' and as --out {values['out']}.")
        values["out"] = folder
    values["set"] = tuple(values.get("set") or ())
    return TrainConfig(**values)


def with_train_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """A typer command whose options are those of TrainConfig and `command`'s own, and whose first argument,
    `config`, is made from them."""
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
    parameters = train_options() + [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    names = {p.name for p in own}

    @functools.wraps(command)
    def wrapped(**values: Any) -> Any:
        own_values = {name: value for name, value in values.items() if name in names}
        return command(config_from({n: v for n, v in values.items() if n not in names}), **own_values)

    wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    wrapped.__annotations__ = {p.name: p.annotation for p in parameters}
    return wrapped


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotated(f: dataclasses.Field, hint: Any) -> Any:
    information = typer.Option(
        help=f.metadata["help"],
        rich_help_panel=f.metadata["panel"],
        metavar=f.metadata["metavar"],
        show_default=f.default not in (None, (), False),
    )
    return Annotated[list[str] | None if hint == tuple[str, ...] else hint, information]


def _default(f: dataclasses.Field) -> Any:
    return None if f.default == () else f.default
