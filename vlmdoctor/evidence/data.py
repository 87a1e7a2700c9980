"""What the model is given: each token's role, whether the loss counts it, and the pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vlmdoctor.errors import Unavailable
from vlmdoctor.knowledge.labels import IGNORE_INDEX

DEPTH = "static"
PROBE = "vlmdoctor.probes.data.read"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a batch: a sample, or several packed ones.

    Attributes:
        origin: `batch` or `dataset`.
        name: What to call it, such as `row 0 of the batch` or `sample 12`.
        ids: The token ids.
        roles: The role of each token, one of `ROLES`.
        labels: The labels as they were given; None where there are none of this row's length.
        attended: Whether attention sees each token; None where the batch has no plain attention mask.
        features: How many features each of its images gives; None where that is not known.
        roles_known: Whether the speakers were distinguished (images, padding and stop tokens always are).
        types: The token type ids, for models that take some.
    """

    origin: str
    name: str
    ids: tuple[int, ...]
    roles: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    attended: tuple[bool, ...] | None = None
    features: tuple[int, ...] | None = None
    roles_known: bool = False
    types: tuple[int, ...] | None = None

    @property
    def seen(self) -> tuple[bool, ...]:
        """Whether each label counts in a loss that compares a token with the label of the next one."""
        return tuple(i > 0 and label != IGNORE_INDEX for i, label in enumerate(self.labels or ()))

    def count(self, role: str, *, supervised: bool = False) -> int:
        """How many tokens have the role, or how many of them the loss sees."""
        if not supervised:
            return self.roles.count(role)
        return sum(seen for seen, own in zip(self.seen, self.roles, strict=False) if own == role)

    @property
    def length(self) -> int:
        """How many tokens are not padding."""
        return len(self.ids) - self.count("padding")

    @property
    def runs(self) -> tuple[tuple[str, int, int], ...]:
        """(role, first token, tokens) of each stretch of one role."""
        found: list[tuple[str, int, int]] = []
        for i, role in enumerate(self.roles):
            if found and found[-1][0] == role:
                found[-1] = (role, found[-1][1], found[-1][2] + 1)
            else:
                found.append((role, i, 1))
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Picture:
    """The pixels of one image, as the model is given them.

    Attributes:
        name: Such as `image 0 of the batch`.
        low, high: The smallest and largest finite value.
        finite: Whether all values are finite.
        constant: Whether the whole image has one colour.
        restored_low, restored_high: The same with the processor's normalisation undone, so that 0 is black
            and 1 is white; None where that is not known.
        fits: Share of pixels that are whole steps of 1/255 once a known normalisation is undone, by its
            name; `declared` is the processor's own. Empty where the pixels are not float32.
        contrast: The largest difference between two values of the same channel; None where not measured.
    """

    name: str
    low: float
    high: float
    finite: bool = True
    constant: bool = False
    restored_low: float | None = None
    restored_high: float | None = None
    fits: tuple[tuple[str, float], ...] = ()
    contrast: float | None = None


@dataclass(frozen=True, kw_only=True)
class Words:
    """The vocabulary from its three sides: tokenizer, embedding and output head.

    Attributes:
        embedding_rows: Rows of the input embedding; None where unknown.
        head_rows: Rows of the output head; None where unknown.
        tokenizer_size: Entries of the tokenizer, added ones included.
        placeholder: The text that stands for an image, where it is known.
        placeholder_ids: What the tokenizer makes of it: one id, if all is well.
        image_ids: Ids that the model replaces by image, video or audio features.
        padding_id: The id of the padding token.
        start_id: The id that a text begins with, where there is one.
        stop_ids: Ids that end an answer in the texts: the end mark of the template, else the eos token.
        eos_ids: Ids at which the model stops generating, by its own configuration.
        pad_is_eos: Whether padding and end of text are the same token.
        unknown_id: The id of the unknown token, where there is one.
        max_positions: The longest sequence that the model has positions for; None where unknown.
        names: The text of the ids that the fields above hold.
    """

    embedding_rows: int | None = None
    head_rows: int | None = None
    tokenizer_size: int | None = None
    placeholder: str | None = None
    placeholder_ids: tuple[int, ...] = ()
    image_ids: tuple[int, ...] = ()
    padding_id: int | None = None
    start_id: int | None = None
    stop_ids: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()
    pad_is_eos: bool = False
    unknown_id: int | None = None
    max_positions: int | None = None
    names: tuple[tuple[int, str], ...] = ()

    def named(self, token: int) -> str:
        """An id with its text, such as `'<image>' (3)`."""
        text = dict(self.names).get(token)
        return str(token) if text is None else f"'{text}' ({token})"


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A sample that could not be made into a batch.

    Attributes:
        name: Which one.
        error: What was raised.
        file, line: Where.
        columns: Columns that were taken away before, as `remove_unused_columns` does, and without which
            alone it fails.
    """

    name: str
    error: str
    file: str | None = None
    line: int | None = None
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Data:
    """What was found in the batch and in some samples of the dataset.

    Attributes:
        rows: The rows looked at.
        pictures: The images looked at.
        words: The vocabulary's sizes and special tokens.
        roles_unknown: Why the speakers could not be distinguished; None where they were, in any row.
        template_marks_answers: Whether the chat template has `{% generation %}`; None without a template.
        assistant_only_loss: Whether the training arguments ask for the loss on answers alone.
        shapes: The shapes of the batch's tensors by key.
        dtypes: Their dtypes.
        types_wanted: The key of the token types with which the model makes part of its mask
            bidirectional; None where it takes none.
        model_type: The model's type, by its configuration.
        tokenizer_given: Whether there was a tokenizer.
        troubles: Samples that could not be read or collated.
        samples: How many samples of the dataset were looked at.
        encoder_decoder: Whether the labels are of another sequence than the ids.
        max_length: The length at which sequences are cut, by the training arguments.
    """

    rows: tuple[Row, ...] = ()
    pictures: tuple[Picture, ...] = ()
    words: Words = Words()
    roles_unknown: str | None = None
    template_marks_answers: bool | None = None
    assistant_only_loss: bool = False
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    dtypes: tuple[tuple[str, str], ...] = ()
    types_wanted: str | None = None
    model_type: str = ""
    tokenizer_given: bool = False
    troubles: tuple[Trouble, ...] = ()
    samples: int = 0
    encoder_decoder: bool = False
    max_length: int | None = None

    @property
    def labelled(self) -> tuple[Row, ...]:
        """The rows whose labels stand beside their ids."""
        return () if self.encoder_decoder else tuple(row for row in self.rows if row.labels is not None)

    def needing_roles(self) -> tuple[Row, ...]:
        """The labelled rows whose speakers are known; raises `Unavailable` with the reason where none is."""
        known = tuple(row for row in self.labelled if row.roles_known)
        if not known:
            raise Unavailable(self.roles_unknown or "no labels were given")
        return known

    def needing_labels(self) -> tuple[Row, ...]:
        """The labelled rows; raises `Unavailable` where there are none."""
        if not self.labelled:
            raise Unavailable("no labels beside input_ids were given")
        return self.labelled


def count(rows: Iterable[Row], role: str, *, supervised: bool = False) -> int:
    """How many tokens of all rows have the role, or how many of them the loss sees."""
    return sum(row.count(role, supervised=supervised) for row in rows)
