"""Batches made from a configuration are such as a processor and a collator would make."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.detection.models import make
from vlmdoctor.knowledge.config_fields import image_token
from vlmdoctor.knowledge.parameter_names import role_of
from vlmdoctor.targets.synthetic import batch_for


def built(family: str, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    model = make(family).model
    return model.config, batch_for(model, image_size=32, **options)


def test_the_marks_of_an_image_stand_around_its_placeholders() -> None:
    config, batch = built("qwen2_vl", images=2)
    row = batch["input_ids"][0].tolist()
    image, start, end = image_token(config), config.vision_start_token_id, config.vision_end_token_id
    marks = [token for token in row if token in (image, start, end)]
    assert marks == [start, *[image] * 4, end] * 2
    hidden = batch["labels"][0] == -100
    assert hidden.tolist() == [token in (image, start, end) for token in row]


def test_the_answer_alone_is_supervised_and_ends_with_the_end_token() -> None:
    config, batch = built("llava", answer=4)
    kept = batch["labels"][0] != -100
    assert kept.tolist() == [False] * (len(kept) - 4) + [True] * 4
    assert batch["input_ids"][0, -1] == config.text_config.eos_token_id


def test_words_are_no_special_tokens() -> None:
    config, batch = built("chameleon", text=200)
    words = set(batch["input_ids"].flatten().tolist()) - {image_token(config), 1, 2}
    assert not words & set(config.vocabulary_map.values())


@pytest.mark.parametrize("family", ["t5gemma2", "florence2", "udop", "pix2struct"])
def test_a_decoder_is_given_its_own_targets_one_place_on(family: str) -> None:
    _, batch = built(family, answer=4)
    assert "decoder_input_ids" not in batch  # the model shifts the labels
    assert batch["labels"].shape == (2, 4)


def test_an_agent_gets_placeholders_for_its_cameras_and_no_labels() -> None:
    config, batch = built("pi0")
    assert int((batch["input_ids"] == image_token(config)).sum()) == 2 * 16
    assert "labels" not in batch


def test_each_row_has_an_image_of_its_own() -> None:
    _, batch = built("kosmos-2.5")
    one, other = batch["flattened_patches"]
    assert torch.equal(one[:, :2], other[:, :2])  # rows and columns
    assert not torch.equal(one[:, 2:], other[:, 2:])


def test_patches_with_their_places_are_as_many_as_the_image_has() -> None:
    _, batch = built("gemma4")
    assert batch["pixel_values"].shape[:2] == batch["image_position_ids"].shape[:2] == (2, 16)


def test_a_decoders_table_of_patches_is_no_projector() -> None:
    assert role_of("decoder.embed_patches.proj.weight") == "vision"
