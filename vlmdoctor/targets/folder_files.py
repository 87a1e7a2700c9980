"""The files of a folder that a tokenizer or processor reads: looked at before transformers opens them."""

from __future__ import annotations

from pathlib import Path

from vlmdoctor.boundary import Unreadable, open_regular, read_json

# Bytes: the largest tokenizer.json that is known has 35 million.
MOST_VOCABULARY, MOST_SETTINGS = 128 << 20, 4 << 20
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")
_SETTINGS = (
    "config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "chat_template.json",
    "chat_template.jinja",
)


def refuse_odd_files(folder: Path) -> None:
    """Raises `Unreadable` where one of these files is no regular one, too large, or JSON too deep."""
    names = {
        **dict.fromkeys(_VOCABULARIES, MOST_VOCABULARY),
        **dict.fromkeys(_SETTINGS, MOST_SETTINGS),
        **dict.fromkeys(_more_templates(folder), MOST_SETTINGS),
    }
    for name, most in names.items():
        file = folder / name
        if file.is_symlink() or file.exists():
            if file.suffix == ".json" and most == MOST_SETTINGS:
                read_json(file, most)
            else:
                open_regular(file, most).close()


def _more_templates(folder: Path) -> list[str]:
    try:
        found = sorted((folder / "additional_chat_templates").glob("*"))
    except OSError:
        return []
    if len(found) > len(_SETTINGS) ** 2:
        raise Unreadable(f"{folder} has {len(found)} further chat templates, more than are read.")
    return [f"{file.parent.name}/{file.name}" for file in found]
