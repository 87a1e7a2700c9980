"""From the name of some data to a dataset."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minivlm.data import digits, emoji
from minivlm.data.sample import Dataset, Split
from minivlm.errors import UserError, reason_of

BUILT_IN: dict[str, Callable[..., Dataset]] = {"digits": digits.Digits, "emoji": emoji.Emoji}
SUFFIXES = (".json", ".jsonl", ".parquet")


def load_data(
    spec: str,
    split: Split = "train",
    seed: int = 0,
    *,
    on_bad_row: str = "skip",
    image_folder: str | Path | None = None,
    check_images: bool = False,
    hold_out: bool = True,
) -> Dataset:
    """The data called `spec`.

    Args:
        spec: `digits`, `emoji`; a .json, .jsonl or .parquet file; a folder of parquet files or one saved with
            `datasets`; or the id of a dataset on the Hugging Face hub (`owner/name` or `owner/name:config`).
        split: "train" or "test".
        seed: What the built-in samples are made from.
        on_bad_row: "skip" or "refuse" the user's rows that can't be used; see `dataset.report`.
        image_folder: Where the relative image paths of the user's rows begin; by default beside the file.
        check_images: Decode all of the user's images up front.
        hold_out: Keep one row in twenty of the user's for the test split. False, when there is a test set of
            its own, gives all rows.

    Raises:
        UserError: There is no such data, or none of it can be used.
    """
    if on_bad_row not in ("skip", "refuse"):
        raise UserError(f"on_bad_row is {on_bad_row!r}: it has to be skip or refuse")
    if split not in ("train", "test"):
        raise UserError(f"there is no split {split!r}: it has to be train or test")
    if spec in BUILT_IN:
        return BUILT_IN[spec](split, seed)
    if image_folder is not None and not Path(image_folder).is_dir():
        raise UserError(f"the image folder {image_folder} doesn't exist")

    from minivlm.data.conversations import Conversations  # needs torch, which the built-in data does not

    source, held_out = _source(spec, split)
    folder = None if image_folder is None else Path(image_folder)
    return Conversations(source, split, seed, on_bad_row, folder, check_images, hold_out and not held_out)  # type: ignore[arg-type]


def corpus_texts() -> list[str]:
    """All texts of the built-in data, questions and answers, once each: what the tokenizer is made from."""
    return digits.texts() + emoji.texts()


def _source(spec: str, split: Split) -> tuple[Any, bool]:
    """The rows, and whether they are already those of the split alone."""
    from minivlm.data import sources

    path = Path(spec).expanduser()
    try:
        exists = path.exists()
    except (OSError, ValueError):  # a name too long for the file system, or with a zero byte in it
        exists = False
    if not spec or not exists:
        return _from_hub(spec, split)
    try:
        if path.is_dir():
            return _from_folder(path, split)
        if path.suffix == ".jsonl":
            return sources.JsonLinesSource(path), False
        if path.suffix == ".json":
            return sources.JsonSource(path), False
        if path.suffix == ".parquet":
            return sources.ParquetSource([path]), False
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {reason_of(error)}") from None
    raise UserError(f"{path}: data files end in {', '.join(SUFFIXES)}")


def _from_folder(path: Path, split: Split) -> tuple[Any, bool]:
    from minivlm.data import sources

    if (path / "dataset_dict.json").is_file() or (path / "dataset_info.json").is_file():
        datasets = _datasets(f"{path}, which was saved with datasets")
        try:
            loaded = datasets.load_from_disk(str(path))
        except Exception as error:  # the library raises all kinds on folders that are incomplete
            raise UserError(f"{path} can't be loaded: {_first_line(error)}") from None
        return _of_split(loaded, path.name, path, split)
    tables = sorted(path.glob("**/*.parquet"))
    if tables:
        return sources.ParquetSource(tables), False
    candidates = [file.name for file in sorted(path.iterdir()) if file.suffix in SUFFIXES]
    hint = f"; name the file itself, such as {path / candidates[0]}" if candidates else ""
    raise UserError(f"the folder {path} holds no parquet files and no dataset saved with datasets{hint}")


def _from_hub(spec: str, split: Split) -> tuple[Any, bool]:
    name, _, config = spec.partition(":")
    looks_like_id = name.count("/") == 1 and not spec.startswith((".", "/", "~")) and not Path(spec).suffix
    if not looks_like_id:
        if "/" in spec or Path(spec).suffix in SUFFIXES:
            raise UserError(f"there is no file or folder {spec}")
        close = difflib.get_close_matches(spec, BUILT_IN, n=1)
        hint = f"did you mean {close[0]}?" if close else "give one of these, a file, a folder, or owner/name"
        raise UserError(f"there is no data called {spec!r}; built in are {' and '.join(BUILT_IN)}: {hint}")
    datasets = _datasets(f"{spec} is no file or folder here; loading it as a dataset of the hub")
    try:
        loaded = datasets.load_dataset(name, config or None)
    except Exception as error:  # missing, private, no network, no such config: each has its own class
        raise UserError(
            f"{spec} is no file or folder, and can't be loaded from the hub either: {_first_line(error)}"
        ) from None
    return _of_split(loaded, spec, Path(), split)


def _of_split(loaded: Any, name: str, folder: Path, split: Split) -> tuple[Any, bool]:
    """The part of a `datasets` dataset, or of a dictionary of them, that has the split's rows."""
    from minivlm.data import sources

    held_out = False
    if isinstance(loaded, dict):  # DatasetDict is one
        test = next((key for key in ("test", "validation", "val") if key in loaded), None)
        train = "train" if "train" in loaded else next((key for key in loaded if key != test), test)
        held_out = test is not None and test != train
        loaded = loaded[test if split == "test" and held_out else train]
    return sources.DatasetsSource(loaded, name, folder), held_out


def _datasets(wanted: str) -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise UserError(f"{wanted} needs the library datasets: pip install 'vlmdoctor[data]'")
    import datasets

    return datasets


def _first_line(error: Exception) -> str:
    return reason_of(error)
