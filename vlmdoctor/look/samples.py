"""The samples that are drawn: tokens with their texts and roles, and the images as the model gets them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import UserError
from vlmdoctor.evidence.data import Data, Row
from vlmdoctor.knowledge.named_parts import current, naming
from vlmdoctor.plain_text import plain_line
from vlmdoctor.probes.data import pixels as data_pictures
from vlmdoctor.probes.data.read import Reader, read
from vlmdoctor.probes.model.named import known_parts

if TYPE_CHECKING:
    import PIL.Image

    from vlmdoctor.subject import Subject

SPEAKERS = ("system", "user", "assistant", "other")
MOST_TOKENS = 20_000  # of a sample that are drawn
MOST_BYTES = 400  # of a token's text


@dataclass(frozen=True)
class Token:
    """A token as it is drawn; `count` of them in a row where placeholders or padding were folded."""

    id: int
    text: str
    role: str
    supervised: bool
    count: int = 1


@dataclass(frozen=True)
class Turn:
    """What one speaker says, with the template's marks around it."""

    speaker: str
    tokens: tuple[Token, ...]


@dataclass(frozen=True)
class Look:
    """One sample.

    Attributes:
        row: Its tokens, as facts.
        turns: The same by speaker, with placeholders and padding folded.
        images: Its images with the normalisation undone.
        notes: What is to be said of the images, such as that their normalisation is not known.
    """

    row: Row
    turns: tuple[Turn, ...]
    images: tuple[PIL.Image.Image, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "notes", tuple(map(plain_line, self.notes)))

    @property
    def name(self) -> str:
        """What the sample is called, as it may be shown."""
        return plain_line(self.row.name)

    @property
    def supervised(self) -> int:
        """How many tokens the loss sees."""
        return sum(self.row.seen)


def looks_of(subject: Subject, wanted: int) -> tuple[list[Look], Data]:
    """Up to `wanted` samples of the batch, then of the dataset, and the facts of all that was read.

    Raises:
        UserError: There is nothing to look at.
    """
    with naming(known_parts(subject)):
        return _looks_of(subject, wanted)


def _looks_of(subject: Subject, wanted: int) -> tuple[list[Look], Data]:
    reader = Reader(subject)
    found: list[Look] = []
    for origin, names, batch in _batches(subject, wanted):
        found += _of_batch(reader, batch, origin, names)
        if len(found) >= wanted:
            break
    if not found:
        raise UserError(_nothing(subject))
    return found[:wanted], read(subject)


def _batches(subject: Subject, wanted: int) -> Iterator[tuple[str, list[str] | None, Any]]:
    if subject.batch is not None:
        yield "batch", None, subject.batch
    if subject.train_dataset is not None:
        from vlmdoctor.probes.data.samples import batches

        collator = subject.data_collator
        made, troubles = batches(
            subject.train_dataset, collator, subject.model, subject.training_args, wanted
        )
        for names, batch in made:
            yield "dataset", names, batch
        if not made and troubles:
            raise UserError(f"{troubles[0].name} can't be made into a batch: {troubles[0].error}.")


def _nothing(subject: Subject) -> str:
    if subject.batch is None and subject.train_dataset is None:
        return (
            "there is nothing to look at: the target gives no batch; let its function return "
            "(model, batch) or a vlmdoctor.Subject with batch, tokenizer and processor."
        )
    return (
        "there is nothing to look at: neither the batch nor the samples have input_ids with rows of tokens."
    )


def _of_batch(reader: Reader, batch: Any, origin: str, names: list[str] | None) -> list[Look]:
    batch = reader.standard(batch)
    rows = reader.rows(batch, origin, names)
    tensors = data_pictures.images_of(batch, reader.config)
    shares = _images_per_row(rows, len(tensors))
    found, start = [], 0
    for row, many in zip(rows, shares, strict=True):
        own = tensors[start : start + many]
        start += many
        notes = []
        if own and reader.normalisation is None:
            notes.append("no processor was given: each image is stretched to its own range")
        if len(row.ids) > MOST_TOKENS:
            notes.append(f"the first {MOST_TOKENS:,} of {len(row.ids):,} tokens are drawn")
        images = tuple(_picture(image, reader.normalisation) for image in own)
        found.append(Look(row, tuple(_turns(row, reader)), images, tuple(notes)))
    return found


def _images_per_row(rows: Sequence[Row], images: int) -> list[int]:
    """How many images belong to each row, by where they land if that was measured; else all to the first."""
    known = [len(row.features) if row.features is not None else None for row in rows]
    if all(n is not None for n in known) and sum(n or 0 for n in known) == images:
        return [n or 0 for n in known]
    landed = current().images_of_rows
    if len(landed) == len(rows) and sum(landed) == images and rows[0].origin == "batch":
        return list(landed)
    with_images = [row.count("image") > 0 for row in rows]
    if sum(with_images) and images % sum(with_images) == 0:
        return [images // sum(with_images) if has else 0 for has in with_images]
    if images % len(rows) == 0 and rows[0].origin == "batch":
        return [images // len(rows)] * len(rows)  # no text says where they are: as the batch stacks them
    return [images if i == 0 else 0 for i in range(len(rows))]


def _picture(image: Any, normalisation: Any) -> PIL.Image.Image:
    """[C, H, W] with its normalisation undone, as 8-bit RGB; NaN is black."""
    import PIL.Image
    import torch

    image = image.detach().to("cpu", torch.float32).nan_to_num(0.0, 0.0, 0.0)
    if normalisation is not None and len(normalisation[0]) == image.shape[0]:
        image = data_pictures.restored(image, normalisation)
    else:
        low, high = float(image.min()), float(image.max())
        image = (image - low) / (high - low) if high > low else image * 0.0 + 0.5
    pixels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    pixels = pixels.expand(3, -1, -1) if pixels.shape[0] == 1 else pixels
    return PIL.Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _turns(row: Row, reader: Reader) -> Iterator[Turn]:
    speaker = ""
    collected: list[Token] = []
    for role, tokens in _pieces(row, reader):
        if role in SPEAKERS and role != speaker and speaker:
            ending, beginning = _shared(collected)
            yield Turn(speaker, tuple(ending))
            collected = beginning
        if role in SPEAKERS:
            speaker = role
        collected += tokens
    yield Turn(speaker or "other", tuple(collected))


def _shared(tokens: list[Token]) -> tuple[list[Token], list[Token]]:
    """A turn's tokens, and those at its end that already belong to the next one."""
    first = len(tokens)
    while first and tokens[first - 1].role in ("marker", "image"):
        first -= 1
    marks = tokens[first:]
    if not first or len(marks) < 2:
        return (tokens, []) if first else ([], tokens)
    if not all(token.role == "marker" for token in marks[:2]):
        return tokens[:first], marks
    ends_line = next((i for i, token in enumerate(marks[:2]) if "\n" in token.text), None)
    if ends_line is None or ends_line + 1 == len(marks):
        ends_line = 0 if tokens[first - 1].role != "stop" else -1
    cut = first + ends_line + 1
    return tokens[:cut], tokens[cut:]


def _pieces(row: Row, reader: Reader) -> Iterator[tuple[str, list[Token]]]:
    """Stretches of one role; placeholders and padding folded to one token each."""
    seen = row.seen or (False,) * len(row.ids)
    for role, start, length in row.runs:
        many = min(length, MOST_TOKENS - start)
        if many <= 0:
            return
        if role in ("image", "padding"):
            i = start
            while i < start + many:
                end = i
                while end < start + many and (row.ids[end], seen[end]) == (row.ids[i], seen[i]):
                    end += 1
                yield role, [Token(row.ids[i], _text(reader, row.ids[i]), role, seen[i], end - i)]
                i = end
        else:
            places = range(start, start + many)
            texts = _texts(reader, [row.ids[i] for i in places])
            yield role, [Token(row.ids[i], t, role, seen[i]) for i, t in zip(places, texts, strict=True)]


def _text(reader: Reader, token: int) -> str:
    if reader.pieces is not None:
        return reader.pieces.text(token)[:MOST_BYTES]
    return dict(reader.words.names).get(token, f" {token}")


def _texts(reader: Reader, ids: Sequence[int]) -> list[str]:
    """Texts of tokens; a letter that several tokens share the bytes of stands at the last of them."""
    if reader.pieces is None:
        return [_text(reader, token) for token in ids]
    found, waiting = [], b""
    for token in ids:
        waiting += reader.pieces(token)[:MOST_BYTES]
        try:
            found.append(waiting.decode() if waiting else _text(reader, token))
            waiting = b""
        except UnicodeDecodeError as error:
            if len(waiting) < 4 and error.end == len(waiting):
                found.append("")
            else:
                found.append(waiting.decode("utf-8", "replace"))
                waiting = b""
    return found
