"""A trained model at work: questions about image files, and its marks on questions that it has never seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from minivlm.checkpoint import find_checkpoint
from minivlm.data import Collator
from minivlm.distributed import choose_device
from minivlm.errors import UserError, reason_of
from minivlm.evaluate import evaluate_answers, undisturbed
from minivlm.factory import load
from minivlm.progress import shown
from minivlm.task import fitting, load_test_data

GET_ONE = "train a model first, which takes about three minutes: python -m minivlm train"


def find(path: str | None) -> Path:
    """The checkpoint that is meant; without a path, the newest one under runs/.

    Raises:
        UserError: There is none; it says how to get one.
    """
    if path is not None:
        return find_checkpoint(path)
    folders = sorted(Path("runs").glob("*/checkpoints/step-*"), key=lambda folder: folder.stat().st_mtime)
    if not folders:
        raise UserError(f"there is no checkpoint under runs/; {GET_ONE}")
    return folders[-1]


class Answerer:
    """A model that answers questions about image files.

    Args:
        checkpoint: A checkpoint folder.
        device: auto, cpu, cuda, cuda:1 or mps.
    """

    def __init__(self, checkpoint: Path, device: str = "auto") -> None:
        self._device = choose_device(device)
        self._model, self._processor = load(checkpoint)
        self._model.to(self._device).eval()

    @torch.no_grad()
    def answer(self, question: str, images: Sequence[Path | PIL.Image.Image], max_tokens: int = 64) -> str:
        """The likeliest answer, word by word, of at most `max_tokens` tokens.

        Raises:
            UserError: An image can't be opened, or there are `<image>` placeholders in the question.
        """
        if self._processor.image_token in question:
            raise UserError(
                f"leave {self._processor.image_token} out of the question; images are given by --image."
            )
        opened = [image if isinstance(image, PIL.Image.Image) else self.open(image) for image in images]
        inputs = {
            name: value.to(self._device) for name, value in self._processor.ask(question, opened).items()
        }
        room = self._model.config.max_position_embeddings - inputs["input_ids"].shape[1]
        if room < 1:
            raise UserError("question and images are longer than the model can read; ask a shorter one.")
        output = self._model.generate(**inputs, max_new_tokens=min(max_tokens, room), do_sample=False)
        new = output[0, inputs["input_ids"].shape[1] :]
        return self._processor.tokenizer.decode(new, skip_special_tokens=True).strip()

    def open(self, path: Path) -> PIL.Image.Image:
        """The image in a file of any format that Pillow reads.

        Raises:
            UserError: There is no such file, or no image in it.
        """
        try:
            with PIL.Image.open(path) as image:
                image.load()
                return image
        except FileNotFoundError as error:
            raise UserError(f"there is no image file {path}.") from error
        except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
            raise UserError(f"{path} can't be read as an image: {reason_of(error)}.") from error


def evaluate_checkpoint(checkpoint: Path, data: str, samples: int, device: str = "auto") -> dict[str, Any]:
    """The record of `evaluate_answers` for a checkpoint on the test split of some data."""
    model, processor = load(checkpoint)
    model.to(choose_device(device))
    test = load_test_data(data, False, "skip")
    length = model.config.max_position_embeddings
    asked = fitting(test.evaluation_set(samples), processor, length)
    with undisturbed(model), shown() as progress:
        return evaluate_answers(
            model,
            asked,
            lambda images: Collator(processor, length, images=images),
            test.headline_kinds,
            progress=progress,
        )


def table(record: dict[str, Any]) -> str:
    """The record as lines for people."""
    rows = [("", "accuracy", "shuffled images")]
    for name in ["accuracy", *(key for key in record if key.startswith("accuracy/"))]:
        seen, blind = record[name], record[name.replace("accuracy", "accuracy_shuffled", 1)]
        kind = name.partition("/")[2] or "all that count"
        rows.append((kind, f"{100 * seen:.1f}%", f"{100 * blind:.1f}%"))
    lines = [f"{kind:<16}{seen:>16}{blind:>18}" for kind, seen, blind in rows]
    losses = "loss {loss:.4f}, with shuffled images {loss_shuffled:.4f}, with blank ones {loss_blank:.4f}"
    return "\n".join(
        [*lines, "", losses.format(**record), f"{record['questions']} questions about unseen images"]
    )
