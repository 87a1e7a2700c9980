"""A question about an image with its answer, encoded by a checkpoint folder's own processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.plain_text import first_line

QUESTION, ANSWER = "What is in the picture?", "A slow change from dark to light."
SIDE = 224
MOST_TOKENS = 100_000  # of a question and its answer, of which real processors make some thousands at most
_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder holds the files of a tokenizer."""
    return any((folder / name).is_file() for name in _FILES)


def processor_of(folder: Path, trust_remote_code: bool) -> Any:
    """The processor, or where there is none the tokenizer.

    Raises:
        UserError: Neither can be loaded.
    """
    from transformers import AutoProcessor, AutoTokenizer

    for auto in (AutoProcessor, AutoTokenizer):
        try:
            return auto.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
        except MemoryError:
            raise
        except Exception as error:
            last = error
    raise UserError(f"the tokenizer in {folder} can't be loaded: {first_line(last)}.") from last


def conversation(owner: Any, folder: Path, rows: int = 1) -> dict[str, Any]:
    """A batch of the same conversation, about an image that is turned from row to row; without labels.

    Raises:
        UserError: There is no chat template, or it can't render a conversation.
    """
    tokenizer = getattr(owner, "tokenizer", owner)
    if not getattr(owner, "chat_template", None) and not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"the tokenizer in {folder} has no chat template, so that no conversation can be made of it; "
            f"give a function that returns (model, batch) or a vlmdoctor.Subject instead."
        )
    for with_image in (True, False):
        try:
            batch = _encoded(owner, with_image and owner is not tokenizer, owner is tokenizer, rows)
            if (tokens := batch["input_ids"].shape[-1]) > MOST_TOKENS:
                raise ValueError(f"a short question with its answer becomes {tokens:,} tokens")
            return batch
        except MemoryError:
            raise
        except Exception as error:  # processors and templates raise what they like
            last = error
    raise UserError(
        f"the chat template in {folder} can't render a conversation: {first_line(last)}."
    ) from last


def label_answers(subject: Any, *, always: bool = False) -> None:
    """Supervises answers and what ends them; by roles, since expanded images move the template's own mask.

    Args:
        subject: Its batch gets labels where the template marks its answers and the speakers are known.
        always: Where they are not, everything but the images is supervised.
    """
    import torch

    from vlmdoctor.probes.data.read import read

    data = read(subject)
    known = all(row.roles_known for row in data.rows)
    if not data.rows or not (always or (data.template_marks_answers and known)):
        return
    wanted = ("assistant", "stop") if known else ("system", "user", "assistant", "stop", "marker", "other")
    labels = [
        [i if role in wanted else IGNORE_INDEX for i, role in zip(row.ids, row.roles, strict=True)]
        for row in data.rows
    ]
    subject.batch["labels"] = torch.tensor(labels)


def _encoded(owner: Any, with_image: bool, plain: bool, rows: int) -> dict[str, Any]:
    conversations = []
    for row in range(rows):
        parts: list[dict[str, Any]] = [{"type": "text", "text": QUESTION}]
        if with_image:
            parts.insert(0, {"type": "image", "image": _image(row)})
        conversations.append(
            [
                {"role": "user", "content": QUESTION if plain else parts},
                {"role": "assistant", "content": ANSWER if plain else [{"type": "text", "text": ANSWER}]},
            ]
        )
    return dict(
        owner.apply_chat_template(conversations, tokenize=True, return_dict=True, return_tensors="pt")
    )


def _image(turns: int) -> Any:
    """From dark to light, so that it can be seen which way is up."""
    import PIL.Image

    image = PIL.Image.merge(
        "RGB",
        (
            PIL.Image.linear_gradient("L").resize((SIDE, SIDE)),
            PIL.Image.linear_gradient("L").rotate(90).resize((SIDE, SIDE)),
            PIL.Image.radial_gradient("L").resize((SIDE, SIDE)),
        ),
    )
    return image.rotate(90 * turns)
