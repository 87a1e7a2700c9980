"""From what the user typed to a subject with something to look at."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vlmdoctor import boundary
from vlmdoctor.errors import UserError
from vlmdoctor.subject import Subject
from vlmdoctor.targets.conversation import conversation, has_tokenizer, label_answers, processor_of
from vlmdoctor.targets.within_limits import bounded


def subject_to_look_at(text: str, trust_remote_code: bool) -> Subject:
    """The subject of a target; for a checkpoint folder its processor with a made-up conversation.

    Raises:
        UserError: It can't be built, or there is nothing in it to look at.
    """
    path = boundary.expanded(text)
    if path.suffix == ".json" and boundary.is_file(path):
        path = path.parent
    if boundary.is_dir(path) and text != "minivlm":
        return _folder(path, trust_remote_code)
    from vlmdoctor.targets.resolve import resolve

    return resolve(text, trust_remote_code=trust_remote_code, makes_batch=False).subject


def _folder(path: Path, trust_remote_code: bool) -> Subject:
    """No model is built: its configuration is all that is needed to read the tokens."""
    if not has_tokenizer(path):
        raise UserError(f"{path} has no tokenizer files, so there is nothing to look at.")
    config = _config(path, trust_remote_code)

    def read() -> Subject:
        owner = processor_of(path, trust_remote_code)
        tokenizer = getattr(owner, "tokenizer", owner)
        subject = Subject(
            SimpleNamespace(config=config),
            batch=conversation(owner, path),
            tokenizer=tokenizer,
            processor=None if owner is tokenizer else owner,
        )
        label_answers(subject)
        return subject

    return read() if trust_remote_code else bounded(path, read)


def _config(path: Path, trust_remote_code: bool) -> Any:
    from transformers import AutoConfig

    try:
        if not trust_remote_code:
            from vlmdoctor.targets.checkpoint import configuration

            return configuration(path / "config.json")
        return AutoConfig.from_pretrained(path, trust_remote_code=True, local_files_only=True)
    except Exception:  # a folder with a tokenizer alone is worth looking at too
        return None
