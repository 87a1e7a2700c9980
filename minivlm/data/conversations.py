"""A user's own conversations about images, as a dataset that survives whatever is in them.

Rows are checked up front as far as that is cheap (structure, placeholders, that an image file exists) and
images are opened only when they are needed. A row that turns out bad in the middle of an epoch is counted,
and the next good one takes its place: always the same one, whatever happened before.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

from minivlm.data.rows import BadRow, Row, RowReport, read_row
from minivlm.data.sample import Sample, Split
from minivlm.data.sources import Source, Unreadable
from minivlm.errors import UserError, reason_of

OnBadRow = Literal["skip", "refuse"]
TEST_SHARE = 20  # one row in so many is kept for the test
LATE_REASONS = ("", "missing image", "broken image", "too long", "changed since it was checked")
"""What can still be found wrong with a row when it is read, by number."""


class Conversations:
    """The rows of `source` that belong to a split and can be used.

    Args:
        source: The rows.
        split: The test split is the twentieth part of the rows, chosen by a hash of the names of their images
            (so that no image is in both), or of their id.
        seed: Not used: the order of the samples is the sampler's business.
        on_bad_row: "skip" them, or "refuse" the dataset.
        image_folder: Where relative image paths begin; the source's own folder if None.
        check_images: Decode every image up front.
        hold_out: False gives all rows to both splits, for data that comes with a test set of its own.

    Raises:
        UserError: There are no rows, or no good ones, or there are bad ones that are to be refused.
    """

    endless = False
    headline_kinds: tuple[str, ...] = ("conversation",)

    def __init__(
        self,
        source: Source,
        split: Split = "train",
        seed: int = 0,
        on_bad_row: OnBadRow = "skip",
        image_folder: Path | None = None,
        check_images: bool = False,
        hold_out: bool = True,
    ) -> None:
        del seed
        self.name, self.split, self.source = source.name, split, source
        self._folder = source.folder if image_folder is None else Path(image_folder)
        self._refuse = on_bad_row == "refuse"
        self._length_limit: tuple[Any, int] | None = None
        self._checked = RowReport(source.name)
        good, hashes = self._scan(check_images)
        if not self._checked.total:
            raise UserError(f"{source.name} has no rows")
        self._refuse_bad_rows(self._checked)
        if not good:
            raise UserError(f"no row can be used\n{self._checked}")
        self._rows = np.array(good)[_in_split(hashes, split)] if hold_out else np.array(good)
        self.blocks = self._lengths_of_blocks()
        # Shared memory: what a DataLoader's worker finds broken is told by the report of the main process.
        self._late = torch.zeros(len(self._rows), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Sample]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> Sample:
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        for j in (*range(i, len(self)), *range(i)):
            if not self._late[j]:
                try:
                    return self._read(int(self._rows[j]))
                except BadRow as error:
                    known = error.reason in LATE_REASONS
                    self._late[j] = LATE_REASONS.index(error.reason) if known else len(LATE_REASONS) - 1
        raise UserError(f"no row can be used any more\n{self.report}")

    @property
    def report(self) -> RowReport:
        """All rows of the source (of both splits), with what the check and the reading found wrong so far."""
        report = RowReport(self.name, self._checked.total, self._checked.reasons.copy())
        report.examples = {reason: list(kept) for reason, kept in self._checked.examples.items()}
        for j in torch.nonzero(self._late).flatten().tolist():
            report.add(f"row {self._rows[j]}", BadRow(LATE_REASONS[self._late[j]]))
        return report

    def limit_length(self, processor: Any, max_length: int) -> None:
        """Takes rows of more than `max_length` tokens, images included, for bad ones from now on.

        They are found when they are read, since encoding all text of a large dataset takes minutes; where bad
        rows are to be refused, all are encoded now.

        Raises:
            UserError: Bad rows are to be refused, and there are some.
        """
        self._length_limit = (processor, max_length)
        if self._refuse:
            for j, number in enumerate(self._rows):
                try:
                    self._check_length(read_row(self.source.row(int(number))))
                except BadRow as error:
                    self._late[j] = LATE_REASONS.index(error.reason)
            self._refuse_bad_rows(self.report)

    def evaluation_set(self, n: int) -> list[Sample]:
        """At most `n` samples, evenly spread over the split."""
        places = np.unique(np.linspace(0, len(self) - 1, min(n, len(self))).astype(int))
        return [self[int(i)] for i in places]

    def contrastive_pair(self, i: int) -> tuple[Any, str, int]:
        """The first image of a sample, the first answer about it, and a hash of that answer."""
        for j in (*range(i, len(self)), *range(i)):
            sample = self[j]
            if sample.images:
                answer = next(m["content"] for m in sample.messages if m["role"] == "assistant")
                return sample.images[0], answer, _hash(answer) >> 1  # fits a signed 64-bit integer
        raise UserError(f"{self.name} has no images: contrastive training needs them")

    def _scan(self, check_images: bool) -> tuple[list[int], list[int]]:
        """Row numbers of the good rows, and for each a hash that decides on its split."""
        good, hashes = [], []
        for number, raw in enumerate(self.source.scan()):
            self._checked.total += 1
            try:
                if isinstance(raw, Unreadable):
                    raise BadRow("not valid JSON")
                row = read_row(raw)
                for image in row.images:
                    self._check_image(image)
                if check_images:
                    self._read(number)
            except BadRow as error:
                self._checked.add(_name(number, raw), error)
            else:
                good.append(number)
                hashes.append(_hash(_identity(number, raw, row)))
        return good, hashes

    def _refuse_bad_rows(self, report: RowReport) -> None:
        if self._refuse and report.bad:
            raise UserError(f"there are bad rows, and on_bad_row is refuse\n{report}")

    def _read(self, number: int) -> Sample:
        row = read_row(self.source.row(number))
        self._check_length(row)
        images = tuple(self._open_image(image) for image in row.images)
        return Sample(row.messages, images, "conversation")

    def _check_length(self, row: Row) -> None:
        if self._length_limit is not None:
            processor, limit = self._length_limit
            length = len(processor.encode(row.messages, len(row.images))[0])
            if length > limit:
                raise BadRow("too long", f"{length} tokens, {limit} allowed")

    def _check_image(self, image: Any) -> None:
        """Raises `BadRow` where that can be told without reading the image."""
        if isinstance(image, Mapping):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, str):
            if image.startswith(("http://", "https://")):
                raise BadRow("image is a web address", f"{image:.60}; nothing is downloaded")
            try:
                found = (self._folder / image).is_file()
            except (OSError, ValueError):  # a name too long, or with a zero byte in it
                found = False
            if not found:
                raise BadRow("missing image", f"{image:.80}")
        elif not isinstance(image, bytes | PIL.Image.Image) or image == b"":
            raise BadRow("missing image", f"{type(image).__name__} where an image should be")

    def _open_image(self, image: Any) -> PIL.Image.Image:
        self._check_image(image)
        if isinstance(image, Mapping):
            image = image.get("bytes") or image.get("path")
        try:
            if isinstance(image, bytes):
                image = PIL.Image.open(io.BytesIO(image))
            elif isinstance(image, str):
                image = PIL.Image.open(self._folder / image)
            # Decodes it; to make RGB of it, whatever its mode, is the image processor's business.
            return PIL.ImageOps.exif_transpose(image)
        except Exception as error:  # Pillow's decoders raise nearly anything on broken files
            raise BadRow("broken image", f"{type(error).__name__}: {reason_of(error)}"[:120]) from None

    def _lengths_of_blocks(self) -> tuple[int, ...]:
        """How many of this split's samples lie in each block of the source."""
        starts = self.source.block_starts
        if not starts:
            return ()
        counts = np.diff(np.searchsorted(self._rows, [*starts, len(self.source)]))
        return tuple(int(count) for count in counts if count)


def _in_split(hashes: list[int], split: Split) -> np.ndarray:
    """Which rows belong to the split: bool [rows]. Neither split is empty, which matters for tiny data."""
    values = np.array(hashes, dtype=np.uint64)
    if len(values) == 1:
        return np.ones(1, bool)
    test = values % TEST_SHARE == 0
    if not test.any():
        test = values == values.min()
    if test.all():
        test = np.arange(len(values)) == len(values) - 1
    return test if split == "test" else ~test


def _identity(number: int, raw: Mapping[str, Any], row: Row) -> str:
    """What decides on a row's split: rows about the same image belong to the same one."""
    paths = [image for image in row.images if isinstance(image, str)]
    if paths:
        return "\n".join(paths)
    return str(number if raw.get("id") is None else raw["id"])


def _name(number: int, raw: Any) -> str:
    identity = raw.get("id") if isinstance(raw, Mapping) else None
    return f"row {number}" if identity is None else f"row {number}, id {identity!s:.40}"


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "little")
