"""Targets laid out without weights, for the dry run, with a batch of the size that was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from vlmdoctor.errors import NotBuilt, UserError
from vlmdoctor.plain_text import first_line, raised, text_of
from vlmdoctor.subject import Subject
from vlmdoctor.targets.target import Target

MADE = "made from the configuration"
# A dry run takes time by layers and memory by sequence: beyond this a mistake is likelier than a wish.
_COUNTS = re.compile(r"layers?$|depths?$|n_layer|num_hidden|blocks?$|interval|experts$|levels$")
_MOST_LAYERS = 10_000
_LABELS = re.compile(r"num_labels|num_classes|n_classes")
_MOST_LABELS = 1_000_000
_SIZES = (
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "patch_size",
    "image_size",
)
_MOST_SAMPLES, _MOST_IMAGES, _LONGEST = 65536, 4096, 1 << 20


@dataclass(frozen=True)
class MetaTarget:
    """How the batch of a target without weights is made.

    Attributes:
        batch_size: Samples.
        images: Images in each.
        length: Tokens in each, those of images included; None: the images and a short text.
        image_size: Pixels of an image's side, for towers of one size; None: as the configuration suggests.
    """

    batch_size: int = 1
    images: int = 1
    length: int | None = None
    image_size: int | None = None

    def building(self) -> AbstractContextManager[Any]:
        """Inside, a user's factory allocates no weights, and its integers are real."""
        from vlmdoctor.dryrun.meta_copy import building

        return building()

    def target(self, text: str, model_class: Any, config: Any, facts: dict[str, Any]) -> Target:
        """The model of a transformers configuration, laid out, with a batch made for it.

        Raises:
            UserError: The model can't be built from its configuration.
        """
        import torch

        self._refuse_nonsense()
        refuse_sizes(config.to_dict(), model_class.__name__)
        try:
            with torch.device("meta"):
                model = model_class._from_config(config)
        except ImportError as error:
            raise package_missing(model_class, error) from error
        except Exception as error:
            reason = raised(error)
            raise NotBuilt(
                f"{model_class.__name__} can't be built from its config.json: {reason}.", reason
            ) from error
        facts = {**facts, "weights": "none: a dry run needs none", "batch": MADE}
        subject = Subject(model)
        try:
            subject.batch = self.batch(model, config)
        except UserError:
            raise
        except Exception as error:
            reason = raised(error)
            missing = f"no batch could be made from its configuration ({reason})"
            return Target(subject, text, facts, missing_batch=missing, raised=reason)
        return Target(subject, text, facts)

    def batch(self, model: Any, config: Any) -> dict[str, Any]:
        """A training batch for `model`."""
        from vlmdoctor.targets.synthetic import batch_for

        return batch_for(
            model,
            config,
            images=self.images,
            batch_size=self.batch_size,
            length=self.length,
            image_size=self.image_size if one_size(config) else None,
        )

    def _refuse_nonsense(self) -> None:
        for option, value, most in (
            ("--batch-size", self.batch_size, _MOST_SAMPLES),
            ("--images", self.images, _MOST_IMAGES),
            ("--seq-len", self.length or 1, _LONGEST),
        ):
            if value > most:
                raise UserError(f"{option} {value} is more than the dry run takes ({most}).")


def one_size(config: Any) -> bool:
    """Whether the tower is made for images of one size."""
    return isinstance(getattr(getattr(config, "vision_config", None), "image_size", None), int)


def refuse_counts(values: dict[str, Any], model: str) -> None:
    """Raises `UserError` for a count of layers, labels or the like that building would never be done with."""
    for place, name, value in _numbers(values):
        if _COUNTS.search(name) and value > _MOST_LAYERS:
            raise UserError(f"{model} is not built: {place} is {_count(value)}, more than {_MOST_LAYERS}.")
        if _LABELS.search(name) and value > _MOST_LABELS:
            raise UserError(f"{model} is not built: {place} is {_count(value)}, more than {_MOST_LABELS}.")


def refuse_sizes(values: dict[str, Any], model: str) -> None:
    """Without weights any width costs nothing, but every layer is built; and a size of 0 is none."""
    refuse_counts(values, model)
    for place, name, value in _numbers(values):
        if name in _SIZES and value <= 0:
            raise UserError(f"{model} is not built: {place} is {value}.")


def _numbers(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str, int]]:
    """(place, name, value) of the whole numbers in objects, and in lists under the list's name."""
    for key, value in values.items():
        name = str(key)
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}.")
        for each in value if isinstance(value, list) else (value,):
            if type(each) is int:
                yield f"{prefix}{name}", name, each
            elif isinstance(each, dict) and isinstance(value, list):
                yield from _numbers(each, f"{prefix}{name}.")


def _count(value: int) -> str:
    return str(value) if value < 10**15 else f"a number of {len(str(value))} digits"


def package_missing(model_class: Any, error: ImportError) -> UserError:
    """What to tell where transformers says that a model needs a package."""
    named = re.search(r"requires the (\w[\w.-]*) library", text_of(error))
    if named is None:
        return UserError(
            f"{model_class.__name__} needs a package that is not installed: {first_line(error, 300)}."
        )
    installed = re.search(r"pip install ([\w.-]*\w)", text_of(error))
    package = installed[1] if installed else named[1]
    return UserError(
        f"{model_class.__name__} needs the package {named[1]}, which is not installed; "
        f"install it with: pip install {package}"
    )
