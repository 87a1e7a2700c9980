"""Reads batches: which rows they have, who speaks in them, what is supervised, and what the pixels are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data, Picture, Row, Trouble
from vlmdoctor.probes.batch.fields import standard
from vlmdoctor.probes.batch.nested import image_leaves
from vlmdoctor.probes.data import chat_template, pixels, speakers, vocabulary
from vlmdoctor.probes.model.training_args import setting
from vlmdoctor.sandbox.restore import restoring_data
from vlmdoctor.subject import Subject

ROLES = ("system", "user", "assistant", "stop", "image", "padding", "marker", "other")
"""What a token is: text of one of the speakers, the stop token that ends an answer, an image
placeholder, padding, part of the chat template, or anything else."""

MOST_ROWS = 64
_LENGTHS = ("max_length", "max_seq_length", "cutoff_len", "model_max_length")


def probe(subject: Subject, gather: Callable[[type], object]) -> Data:
    """Looks at the batch, and at some samples of the dataset as the collator makes batches of them."""
    with restoring_data(subject):
        data = read(subject)
    if not data.rows and not data.pictures and not data.troubles and not data.shapes:
        raise Unavailable("no batch was given" if subject.batch is None else "the batch has no token ids")
    return data


class Reader:
    """Everything that reading a batch needs to know, found out once for each subject."""

    def __init__(self, subject: Subject) -> None:
        processor = subject.processor
        tokenizer = subject.tokenizer or getattr(processor, "tokenizer", None)
        if tokenizer is None and hasattr(processor, "convert_ids_to_tokens"):
            tokenizer = processor
        model = subject.model
        while not hasattr(model, "config") and hasattr(model, "module"):
            model = model.module
        self.model, self.tokenizer, self.processor = model, tokenizer, processor
        self.config = getattr(model, "config", None)
        self.model_type = str(getattr(self.config, "model_type", None) or "")
        self.pieces = None if tokenizer is None else speakers.Pieces(tokenizer)
        self.template, self.template_text, self.unknown = self._learn()
        end = self.template.end if self.template else ""
        self.words = vocabulary.words_of(model, tokenizer, processor, end)
        self.takes_apart = subject.loss_fn is not None
        self.normalisation = pixels.normalisation_of(processor)
        self.types_wanted = vocabulary.BIDIRECTIONAL.get(self.model_type)

    def standard(self, batch: Any) -> Mapping[str, Any]:
        """The batch by the names that all else here goes by; empty without one."""
        return {} if batch is None else standard(self.model, batch, self.takes_apart or None)

    def _learn(self) -> tuple[chat_template.Template | None, str | None, str | None]:
        if self.tokenizer is None:
            return None, None, "no tokenizer was given"
        found = chat_template.source_of(self.tokenizer, self.processor)
        if found is None:
            return None, None, "the tokenizer has no chat template"
        try:
            return chat_template.learn(found[0]), found[1], None
        except Unavailable as reason:
            return None, found[1], str(reason)

    def rows(self, batch: Mapping[str, Any], origin: str, names: Sequence[str] | None = None) -> list[Row]:
        """The rows of a batch in `standard` names; none where it has no two-dimensional `input_ids`."""
        ids = _table(batch.get("input_ids"))
        if ids is None:
            return []
        labels = _table(batch.get("labels"), like=ids)
        mask = _table(batch.get("attention_mask"), like=ids)
        types = _table(batch.get(self.types_wanted or "token_type_ids"), like=ids)
        attended = None if mask is None else [[value > 0 for value in row] for row in mask]
        mask_tells = attended is not None and not all(all(row) for row in attended)
        eos = self._eos_id()
        features = self._features(ids, batch)
        rows = []
        for i, row_ids in enumerate(ids[:MOST_ROWS]):
            seen = attended[i] if attended else None
            roles = speakers.base_roles(
                row_ids, seen, self.words.image_ids, self.words.padding_id, eos, mask_tells=mask_tells
            )
            row_types = types[i] if types else None
            spoken = self._speakers(row_ids, roles, row_types)
            rows.append(
                Row(
                    origin=origin,
                    name=names[i] if names and len(names) == len(ids) else f"row {i} of the batch",
                    ids=tuple(row_ids),
                    roles=tuple(spoken or roles),
                    labels=tuple(labels[i]) if labels else None,
                    attended=tuple(seen) if seen is not None else None,
                    features=features[i] if features else None,
                    roles_known=spoken is not None,
                    types=tuple(row_types) if row_types else None,
                )
            )
        return rows

    def _eos_id(self) -> int | None:
        eos = getattr(self.tokenizer, "eos_token_id", None)
        if isinstance(eos, int):
            return eos
        return self.words.eos_ids[0] if self.tokenizer is None and len(self.words.eos_ids) == 1 else None

    def _speakers(self, ids: list[int], roles: list[str], types: list[int] | None) -> list[str] | None:
        if self.template is not None and self.pieces is not None:
            return speakers.speakers(ids, roles, self.template, self.pieces)
        if self.model_type == "paligemma" and self.tokenizer is not None and types and len(set(types)) == 2:
            # The processor's own mark: 0 for the image and the prompt, 1 for the answer.
            told = {0: "user", 1: "assistant"}
            return [told[t] if role == "other" else role for role, t in zip(roles, types, strict=True)]
        return None

    def _features(self, ids: list[list[int]], batch: Mapping[str, Any]) -> list[tuple[int, ...]] | None:
        """The features of each row's images, in the order in which rows and placeholders come."""
        each = vocabulary.features_per_image(self.config, batch)
        count = vocabulary.image_count(self.config, batch)
        if each is None or not count or not self.words.image_ids:
            return None
        sizes = [each(i) for i in range(count)]
        images = set(self.words.image_ids)
        found: list[tuple[int, ...]] = []
        left = list(sizes)
        for number, row in enumerate(ids):
            placed, own = sum(token in images for token in row), []
            last = number == len(ids) - 1
            # A row takes images while placeholders are left for a good part of the next one.
            while left and (last or placed > 0):
                own.append(left.pop(0))
                placed -= own[-1]
            found.append(tuple(own))
        return found

    def pictures(self, batch: Mapping[str, Any], origin: str) -> list[Picture]:
        """The images of a batch in `standard` names."""
        images = pixels.images_of(batch, self.config)
        return [
            pixels.picture_of(image, f"image {i} of {origin}", self.normalisation)
            for i, image in enumerate(images)
        ]


def read(subject: Subject) -> Data:
    """All facts about a subject's batch and dataset."""
    reader = Reader(subject)
    batch = reader.standard(subject.batch)
    rows = reader.rows(batch, "batch")
    pictures = reader.pictures(batch, "the batch")
    troubles: list[Trouble] = []
    samples = 0
    if subject.train_dataset is not None:
        from vlmdoctor.probes.data.samples import batches

        made, troubles = batches(
            subject.train_dataset, subject.data_collator, subject.model, subject.training_args
        )
        for names, made_of_them in made:
            collated = reader.standard(made_of_them)
            more = reader.rows(collated, "dataset", names)
            rows += more
            samples += len(names)
            pictures += reader.pictures(collated, names[0] if len(names) == 1 else f"{names[0]} and after")
            batch = batch or collated
    known = any(row.roles_known for row in rows)
    return Data(
        rows=tuple(rows),
        pictures=tuple(pictures),
        words=reader.words,
        roles_unknown=None if known else reader.unknown or _unmatched(reader),
        template_marks_answers=None
        if reader.template_text is None
        else bool(chat_template.GENERATION.search(reader.template_text)),
        assistant_only_loss=bool(setting(subject.training_args, "assistant_only_loss")),
        shapes=_outsides(batch, "shape"),
        dtypes=_outsides(batch, "dtype"),
        types_wanted=reader.types_wanted,
        model_type=reader.model_type,
        tokenizer_given=reader.tokenizer is not None,
        troubles=tuple(troubles),
        samples=samples,
        encoder_decoder=bool(getattr(reader.config, "is_encoder_decoder", False)),
        max_length=_max_length(subject.training_args),
    )


def _unmatched(reader: Reader) -> str:
    marker = reader.template.assistant if reader.template else ""
    return f"the chat template's mark before an answer, {marker!r}, is nowhere in the tokens"


def _max_length(arguments: Any) -> int | None:
    values = [setting(arguments, name) for name in _LENGTHS]
    return next((v for v in values if isinstance(v, int) and v > 0), None)


def _table(value: Any, like: list[list[int]] | None = None) -> list[list[int]] | None:
    """Rows of whole numbers from a tensor, an array or lists; None for anything else or another shape."""
    if isinstance(value, torch.Tensor):
        if value.is_meta or value.is_floating_point() or value.is_complex():
            return None
        value = value.tolist()
    elif hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple) or not value:
        return None
    if isinstance(value[0], int):
        value = [value]
    rows = [list(row) for row in value if isinstance(row, list | tuple)]
    if len(rows) != len(value) or not all(row and all(isinstance(v, int) for v in row) for row in rows):
        return None
    if like is not None and [len(row) for row in rows] != [len(row) for row in like]:
        return None
    return rows


def _outsides(batch: Mapping[str, Any], what: str) -> tuple[tuple[str, Any], ...]:
    tensors = {str(key): value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    # Images inside of parts are images.
    tensors |= {name: leaf.tensor for name, leaf in image_leaves(batch).items()}
    if what == "shape":
        return tuple((key, tuple(tensor.shape)) for key, tensor in tensors.items())
    return tuple((key, str(tensor.dtype).removeprefix("torch.")) for key, tensor in tensors.items())
