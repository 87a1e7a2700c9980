"""Reading a checkpoint without loading it: names, shapes and a few values of safetensors or torch files."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from vlmdoctor.boundary import size_of
from vlmdoctor.errors import Unavailable, UserError
from vlmdoctor.plain_text import first_line, text_of
from vlmdoctor.sandbox.weight_files import refuse_header, shards

# In a folder, the first that is there: whole models before adapters, safetensors before pickles.
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = (
    "model.safetensors",
    "pytorch_model.bin",
    "adapter_model.safetensors",
    "adapter_model.bin",
)
# Where training scripts keep the weights among other things.
NESTED = ("model", "state_dict", "model_state_dict", "module", "net")
ROWS, COLUMNS = 8, 512


@dataclass
class CheckpointFiles:
    """The tensors of a checkpoint by name; use it in a `with` statement.

    Attributes:
        shown: What was opened, as it is shown to people.
        shapes: Name -> shape.
        dtypes: Name -> dtype, such as `bfloat16`.
    """

    shown: str
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    _safe: dict[str, Any] = field(default_factory=dict)
    _loaded: dict[str, torch.Tensor] = field(default_factory=dict)
    _open: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def sample(self, name: str, shared_rows: int) -> torch.Tensor:
        """A few values of a tensor, spread over its first `shared_rows` rows; `sample_of` takes the same."""
        source = self._loaded[name] if name in self._loaded else self._safe[name].get_slice(name)
        return sample_of(source, self.shapes[name], shared_rows)

    def whole(self, name: str) -> torch.Tensor:
        """A tensor with all of its values."""
        return self._loaded[name] if name in self._loaded else self._safe[name].get_tensor(name)

    def take_tensors(self, tensors: Mapping[str, Any]) -> None:
        """Adds the tensors of a state dict; what is no tensor is left out."""
        for name, tensor in tensors.items():
            if isinstance(name, str) and isinstance(tensor, torch.Tensor):
                self._loaded[name] = tensor
                self.shapes[name] = tuple(tensor.shape)
                self.dtypes[name] = str(tensor.dtype).removeprefix("torch.")

    def take_safetensors(self, path: Path) -> None:
        """Adds the tensors of a safetensors file; only its header is read."""
        from safetensors import SafetensorError, safe_open

        refuse_header(path)
        try:
            file = self._open.enter_context(safe_open(str(path), framework="pt"))
        except (SafetensorError, OSError, MemoryError) as error:  # it is mapped whole
            raise UserError(
                f"the checkpoint {path} is no whole safetensors file ({first_line(error)})."
            ) from error
        for name in file.keys():  # noqa: SIM118 (no dictionary)
            piece = file.get_slice(name)
            self._safe[name] = file
            self.shapes[name] = tuple(piece.get_shape())
            self.dtypes[name] = _SAFE_DTYPES.get(str(piece.get_dtype()), str(piece.get_dtype()).lower())

    def take_pickle(self, path: Path) -> None:
        """Adds the tensors of a torch file, mapped into memory; code in it is never run."""
        try:
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as error:
                if "mmap" not in text_of(error):
                    raise
                # Files of torch before 1.6 can't be mapped.
                content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            if "weights_only" in text_of(error).lower():
                raise UserError(
                    f"the checkpoint {path} is a pickle that needs code to be run, and code in checkpoints "
                    f"is never run; save its state dict as safetensors."
                ) from error
            raise UserError(
                f"the checkpoint {path} can't be read by torch.load ({first_line(error)})."
            ) from error
        self.take_tensors(state_dict_in(content))


_SAFE_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def state_dict_in(content: Any) -> Mapping[str, Any]:
    """The mapping of names to tensors in what a file or the user gave: itself, or one level down."""
    if not isinstance(content, Mapping):
        raise UserError(f"the checkpoint holds an object of type {type(content).__name__}, not a state dict.")
    if any(isinstance(value, torch.Tensor) for value in content.values()):
        return content
    for key in NESTED:
        inner = content.get(key)
        if isinstance(inner, Mapping) and any(isinstance(value, torch.Tensor) for value in inner.values()):
            return inner
    return content


def open_checkpoint(given: Any) -> CheckpointFiles:
    """Opens a path (a folder or a file), or wraps a state dict.

    Raises:
        UserError: It is not there, cut short, or no checkpoint.
        Unavailable: It is the name of a repository that is not on this machine.
    """
    if isinstance(given, Mapping):
        files = CheckpointFiles("the given state dict")
        files.take_tensors(state_dict_in(given))
    else:
        path = _path(given)
        files = CheckpointFiles(str(path))
        try:
            _take(files, path)
        except BaseException:
            files._open.close()
            raise
    if not files.shapes:
        files._open.close()
        raise UserError(f"the checkpoint {files.shown} holds no tensor.")
    return files


def _path(given: Any) -> Path:
    try:
        path = Path(given).expanduser()
    except TypeError:
        raise UserError(
            f"the checkpoint is an object of type {type(given).__name__}; give a path or a state dict."
        ) from None
    if path.exists():
        return path
    parts = str(given).split("/")
    if len(parts) == 2 and all(parts) and not path.suffix and not path.parent.exists():
        return _cached(str(given))
    raise UserError(f"there is no checkpoint {path}.")


def _cached(repository: str) -> Path:
    """The folder of a hub repository that was downloaded before; nothing is downloaded."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except Exception as error:
        raise Unavailable(f"the checkpoint '{repository}' is not on this machine") from error


def _take(files: CheckpointFiles, path: Path) -> None:
    if path.is_dir():
        for name in INDEXES:
            if (path / name).is_file():
                _take_shards(files, path / name)
                return None
        for name in SINGLES:
            if (path / name).is_file():
                return _take(files, path / name)
        loose = sorted(path.glob("*.safetensors"))
        if not loose:
            raise UserError(f"the checkpoint folder {path} has no safetensors and no pytorch_model.bin.")
        for file in loose:
            files.take_safetensors(file)
        return None
    size_of(path)  # a pipe or a device would be waited for
    if path.suffix == ".json":
        _take_shards(files, path)
    elif path.suffix == ".safetensors":
        files.take_safetensors(path)
    else:
        files.take_pickle(path)
    return None


def _take_shards(files: CheckpointFiles, index: Path) -> None:
    pickled = index.name.endswith(".bin.index.json")
    for shard in shards(index, ".bin" if pickled else ".safetensors"):
        _take(files, shard)


def sample_of(source: Any, shape: tuple[int, ...], shared_rows: int) -> torch.Tensor:
    """At most ROWS x COLUMNS values of a tensor, or of a slice of a file, as float32 on the CPU."""
    with torch.no_grad():
        if not shape:
            return torch.as_tensor(source[...]).detach().float().cpu().reshape(1)
        if len(shape) == 1:
            return source[: min(shared_rows, ROWS * COLUMNS)].detach().float().cpu()
        step = max(1, (shared_rows - 1) // (ROWS - 1)) if shared_rows > ROWS else 1
        rows = [source[row : row + 1] for row in range(0, shared_rows, step)][:ROWS]
        return torch.cat([row.detach().flatten()[:COLUMNS].float().cpu() for row in rows])
