"""Who speaks each token, inferred from the ids: by the chat template's markers in the tokens' own texts."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import Any

from vlmdoctor.probes.data.chat_template import Template

LONGEST_CHANCE = 2  # so many padding ids in a row, without a mask that says so, may be text


class Pieces:
    """The bytes that each token stands for, so that texts can be searched for among the ids."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._known: dict[int, bytes] = {}
        self._added = {
            int(i): str(getattr(token, "content", token))
            for i, token in (getattr(tokenizer, "added_tokens_decoder", None) or {}).items()
        }
        decoder = repr(getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None))
        self._bytes_of_char = _byte_level() if "ByteLevel" in decoder else None
        self._continues = "##" if "WordPiece" in decoder else None

    def __call__(self, token: int) -> bytes:
        """The bytes of one token; empty for an id that the tokenizer does not know."""
        if token not in self._known:
            self._known[token] = self._made(token)
        return self._known[token]

    def is_added(self, token: int) -> bool:
        """Whether the token was added to the vocabulary, as special ones are."""
        return token in self._added

    def text(self, token: int) -> str:
        """The token as text for people: its own bytes, or its id where it has none."""
        return self(token).decode("utf-8", "replace") or f"<{token}>"

    def _made(self, token: int) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        try:
            piece = self.tokenizer.convert_ids_to_tokens(int(token))
        except (IndexError, OverflowError, TypeError, ValueError):
            return b""
        if not isinstance(piece, str):
            return b""
        if self._bytes_of_char is not None:
            if all(char in self._bytes_of_char for char in piece):
                return bytes(self._bytes_of_char[char] for char in piece)
            return piece.encode()
        if self._continues is not None:
            return piece[2:].encode() if piece.startswith("##") else f" {piece}".encode()
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            try:
                return bytes([int(piece[3:5], 16)])
            except ValueError:
                pass
        return piece.replace("▁", " ").encode()


def _byte_level() -> dict[str, int]:
    """The bytes behind the printable characters that byte-level vocabularies write for them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    rest = [byte for byte in range(256) if byte not in printable]
    return table | {chr(256 + i): byte for i, byte in enumerate(rest)}


def base_roles(
    ids: Sequence[int],
    attended: Sequence[bool] | None,
    image_ids: Iterable[int],
    padding_id: int | None,
    eos_id: int | None,
    *,
    mask_tells: bool,
) -> list[str]:
    """Images, padding and end-of-text tokens; everything else is `other`.

    Args:
        ids: The token ids.
        attended: What the attention mask says of each.
        image_ids: The ids of placeholders.
        padding_id: The id of padding.
        eos_id: The tokenizer's end of text.
        mask_tells: Whether some token of the batch is masked out, so that the mask says what padding is.
    """
    images = set(image_ids)
    roles = ["image" if token in images else "other" for token in ids]
    outside = _ends(ids, roles, padding_id, attended if mask_tells else None)
    for i in outside:
        roles[i] = "padding"
    if padding_id is not None and padding_id == eos_id and not mask_tells:
        first = min((i for i in outside if i > 0), default=None)
        if first is not None and roles[first - 1] != "padding":
            roles[first] = "stop"  # it may as well be the end of the text
    for i, token in enumerate(ids):
        if token == eos_id and roles[i] == "other" and i > 0:
            roles[i] = "stop"
    return roles


def _ends(
    ids: Sequence[int], roles: Sequence[str], padding_id: int | None, attended: Sequence[bool] | None
) -> list[int]:
    """The padding before and after the text."""
    if attended is not None:
        # Whatever its id, but for images: nobody pads with them, so that a mask over them is a mistake.
        empty = [not seen and role != "image" for seen, role in zip(attended, roles, strict=True)]
    else:
        empty = [token == padding_id for token in ids]
    if all(empty):
        return [] if attended is None else list(range(len(ids)))
    head = empty.index(False)
    tail = empty[::-1].index(False)
    places: list[int] = []
    least = 0 if attended is not None else LONGEST_CHANCE
    if head > least:
        places += range(head)
    if tail > least:
        places += range(len(ids) - tail, len(ids))
    return places


def speakers(ids: Sequence[int], roles: list[str], template: Template, pieces: Pieces) -> list[str] | None:
    """`roles` with the speakers filled in; None where no answer's marker is among the tokens."""
    texts = [
        b"" if role in ("padding", "image") else pieces(token) for token, role in zip(ids, roles, strict=True)
    ]
    starts, position = [], 0
    for text in texts:
        starts.append(position)
        position += len(text)
    whole = b"".join(texts)
    turns = _turns(whole, template)
    if not any(role == "assistant" for _, _, role in turns):
        return None
    found = list(roles)
    end_mark = template.end.encode()
    for number, (start, words, role) in enumerate(turns):
        start = _with_blanks(texts, starts, start)
        limit = _with_blanks(texts, starts, turns[number + 1][0]) if number + 1 < len(turns) else len(whole)
        stop = whole.find(end_mark, words, limit) if end_mark else -1
        _fill(found, texts, starts, (start, words), "marker")
        _fill(found, texts, starts, (words, stop if stop >= 0 else limit), role)
        if stop >= 0:
            _fill(found, texts, starts, (stop, limit), "marker")
            if role == "assistant":
                found[_token_at(starts, stop)] = "stop"
    _beginning(found, ids, pieces)
    _leading_blanks(found, texts)
    _stops_of_answers(found, roles)
    return found


def _turns(whole: bytes, template: Template) -> list[tuple[int, int, str]]:
    """(start of the marker, start of the words, speaker) of each turn, in order."""
    markers = [(template.assistant.encode(), "assistant")]
    markers += [(user.encode(), "user") for user in template.user]
    if template.system:
        markers.append((template.system.encode(), "system"))
    found: dict[int, tuple[int, int, str]] = {}
    for marker, role in markers:
        at = whole.find(marker)
        while at >= 0:
            # One marker may begin as another does: the longer one is meant.
            if at not in found or found[at][1] < at + len(marker):
                found[at] = (at, at + len(marker), role)
            at = whole.find(marker, at + 1)
    turns: list[tuple[int, int, str]] = []
    for turn in sorted(found.values()):
        if turns and turn[0] < turns[-1][1]:
            continue
        turns.append(turn)
    if turns and turns[0][0] > 0:
        turns.insert(0, (0, 0, "system" if template.system else "other"))
    return turns


def _with_blanks(texts: Sequence[bytes], starts: Sequence[int], position: int) -> int:
    """`position`, or the start of the token that holds it where only blanks come before it in there."""
    token = _token_at(starts, position)
    before = texts[token][: position - starts[token]]
    return position if before.strip() else starts[token]


def _token_at(starts: Sequence[int], position: int) -> int:
    """The token that holds the byte at `position`."""
    return bisect.bisect_right(starts, position) - 1


def _fill(
    roles: list[str], texts: Sequence[bytes], starts: Sequence[int], span: tuple[int, int], role: str
) -> None:
    """Gives the tokens that begin inside a span of bytes their role; placeholders and padding keep theirs."""
    first = bisect.bisect_left(starts, span[0])
    for i in range(first, len(starts)):
        if starts[i] >= span[1]:
            break
        if texts[i] and roles[i] not in ("image", "padding"):
            roles[i] = role


def _beginning(roles: list[str], ids: Sequence[int], pieces: Pieces) -> None:
    """Special tokens that begin a sequence are nobody's words."""
    for i, role in enumerate(roles):
        if role == "padding":
            continue
        if role not in ("system", "other") or not pieces.is_added(ids[i]):
            return
        roles[i] = "marker"


def _leading_blanks(roles: list[str], texts: Sequence[bytes]) -> None:
    """Line breaks between a marker and the words belong to the marker, which is searched for without them."""
    for i in range(1, len(roles)):
        if roles[i - 1] == "marker" and roles[i] in ("user", "assistant", "system") and not texts[i].strip():
            roles[i] = "marker"


def _stops_of_answers(roles: list[str], base: Sequence[str]) -> None:
    """An end-of-text token in or right after an answer ends it, whatever the template says."""
    for i in range(1, len(roles)):
        if base[i] == "stop" and roles[i] != "stop":
            roles[i] = (
                "stop" if roles[i - 1] in ("assistant", "stop") or roles[i] == "assistant" else "marker"
            )
