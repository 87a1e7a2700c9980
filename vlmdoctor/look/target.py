"""From what the user typed to a subject with something to look at."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vlmdoctor.errors import UserError
from vlmdoctor.subject import Subject

QUESTION, ANSWER = "What is in the picture?", "A slow change from dark to light."
SIDE = 224
IGNORED = -100


def subject_to_look_at(text: str, trust_remote_code: bool) -> Subject:
    """The subject of a target; for a checkpoint folder its processor with a made-up conversation.

    Raises:
        UserError: It can't be built, or there is nothing in it to look at.
    """
    path = Path(text).expanduser()
    if path.suffix == ".json" and path.is_file():
        path = path.parent
    if path.is_dir() and text != "minivlm":
        return _folder(path, trust_remote_code)
    from vlmdoctor.target import resolve

    return resolve(text, trust_remote_code=trust_remote_code).subject


def _folder(path: Path, trust_remote_code: bool) -> Subject:
    """No model is built: its configuration is all that is needed to read the tokens."""
    if not any(
        (path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    ):
        raise UserError(f"{path} has no tokenizer files, so there is nothing to look at.")
    owner = _processor(path, trust_remote_code)
    tokenizer = getattr(owner, "tokenizer", owner)
    subject = Subject(
        SimpleNamespace(config=_config(path, trust_remote_code)),
        batch=_conversation(owner, tokenizer, path),
        tokenizer=tokenizer,
        processor=None if owner is tokenizer else owner,
    )
    _label_answers(subject)
    return subject


def _label_answers(subject: Subject) -> None:
    """Supervises answers where the template marks them; by roles, since expanded images move its own mask."""
    import torch

    from vlmdoctor.evidence.data_read import read

    data = read(subject)
    if data.template_marks_answers and all(row.roles_known for row in data.rows):
        labels = [
            [
                i if role in ("assistant", "stop") else IGNORED
                for i, role in zip(row.ids, row.roles, strict=True)
            ]
            for row in data.rows
        ]
        subject.batch["labels"] = torch.tensor(labels)


def _config(path: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception:  # a folder with a tokenizer alone is worth looking at too
        return None


def _processor(path: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoProcessor, AutoTokenizer

    first: Exception | None = None
    for auto in (AutoProcessor, AutoTokenizer):
        try:
            return auto.from_pretrained(path, trust_remote_code=trust_remote_code, local_files_only=True)
        except Exception as error:
            first = first or error
            last = error
    reason = (str(last).strip().splitlines() or [type(last).__name__])[0].rstrip(".")
    raise UserError(f"the tokenizer in {path} can't be loaded: {reason}.") from last


def _conversation(owner: Any, tokenizer: Any, path: Path) -> dict[str, Any]:
    """A question about an image with its answer, encoded."""
    if not getattr(owner, "chat_template", None) and not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"the tokenizer in {path} has no chat template, so that no conversation can be made of it; "
            f"give a function that returns (model, batch) or a vlmdoctor.Subject instead."
        )
    tried: list[Exception] = []
    for with_image in (True, False):
        try:
            return _encoded(owner, with_image and owner is not tokenizer, plain=owner is tokenizer)
        except Exception as error:  # processors and templates raise what they like
            tried.append(error)
    reason = (str(tried[-1]).strip().splitlines() or [type(tried[-1]).__name__])[0].rstrip(".")
    raise UserError(f"the chat template in {path} can't render a conversation: {reason}.") from tried[-1]


def _encoded(owner: Any, with_image: bool, plain: bool) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "text", "text": QUESTION}]
    if with_image:
        parts.insert(0, {"type": "image", "image": _image()})
    messages = [
        {"role": "user", "content": QUESTION if plain else parts},
        {"role": "assistant", "content": ANSWER if plain else [{"type": "text", "text": ANSWER}]},
    ]
    return dict(owner.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt"))


def _image() -> Any:
    """From dark to light, so that it can be seen which way is up."""
    import PIL.Image

    return PIL.Image.merge(
        "RGB",
        (
            PIL.Image.linear_gradient("L").resize((SIDE, SIDE)),
            PIL.Image.linear_gradient("L").rotate(90).resize((SIDE, SIDE)),
            PIL.Image.radial_gradient("L").resize((SIDE, SIDE)),
        ),
    )
