"""Ids, labels, mask and images are found by what they hold, whatever a stranger calls them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.detection.models import make
from vlmdoctor.probes.batch.fields import Inputs, own_names, standard
from vlmdoctor.probes.batch.roles import roles_of
from vlmdoctor.probes.loss.calls import token_losses, watched_losses


def text(rows: int = 3, length: int = 14, seed: int = 0) -> torch.Tensor:
    return torch.randint(5, 90, (rows, length), generator=torch.Generator().manual_seed(seed))


def masked(labels: torch.Tensor, ignored: int = -100) -> torch.Tensor:
    labels = labels.clone()
    labels[:, :5] = ignored
    return labels


class TestNames:
    def test_of_transformers(self) -> None:
        ids = text()
        fields = {
            "labels": masked(ids),
            "attention_mask": torch.ones_like(ids),
            "input_ids": ids,
            "position_ids": torch.arange(14).expand(3, 14),
            "pixel_values": torch.randn(3, 3, 8, 8),
        }
        roles = roles_of(fields)
        assert (roles.ids, roles.labels, roles.mask) == ("input_ids", "labels", "attention_mask")
        assert roles.images == ("pixel_values",)

    def test_x_and_y(self) -> None:
        ids = text()
        roles = roles_of({"x": ids[:, :-1], "y": ids[:, 1:], "img": torch.rand(3, 3, 8, 8)})
        assert (roles.ids, roles.labels, roles.images) == ("x", "y", ("img",))

    def test_a_mask_of_torch_is_true_where_padding_is(self) -> None:
        ids = text()
        ids[1, 10:] = 0
        roles = roles_of({"caption": ids, "pad_mask": ids == 0})
        assert roles.mask == "pad_mask"
        assert roles.hides

    def test_types_lengths_and_positions_are_no_ids(self) -> None:
        ids = text()
        fields = {
            "words": ids,
            "kinds": (ids > 40).long(),
            "places": torch.arange(14).expand(3, 14).contiguous(),
            "lengths": torch.full((3, 1), 14),
        }
        assert roles_of(fields).ids == "words"

    def test_a_finished_attention_mask_is_no_image(self) -> None:
        ids = text()
        assert roles_of({"ids": ids, "allowed": torch.zeros(3, 1, 14, 14)}).images == ()


class TestNameless:
    """The parts of a tuple that a loss function takes apart."""

    @pytest.mark.parametrize("ignored", [-100, -1])
    @pytest.mark.parametrize("shift", [0, 1])
    def test_labels_are_the_tokens_of_another_part(self, shift: int, ignored: int) -> None:
        whole = text(length=15)
        ids, labels = whole[:, :-1], masked(whole[:, shift : shift + 14], ignored)
        for names in (("[0]", "[1]"), ("[1]", "[0]")):
            roles = roles_of({**dict(zip(names, (ids, labels), strict=True)), "[2]": torch.rand(3, 3, 8, 8)})
            assert (roles.ids, roles.labels) == names
            assert roles.ignored == ignored
            assert roles.images == ("[2]",)

    def test_labels_that_are_all_left_out(self) -> None:
        roles = roles_of({"[0]": torch.full((3, 14), -100), "[1]": text()})
        assert (roles.ids, roles.labels) == ("[1]", "[0]")

    def test_two_texts_are_not_ids_and_labels(self) -> None:
        roles = roles_of({"[0]": text(), "[1]": text(seed=1)})
        assert (roles.ids, roles.labels) == (None, None)

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.sampled_from(["long", "bool", "float", "image", "none", "empty"]), max_size=5))
    def test_any_batch_has_roles_of_its_own_parts(self, kinds: list[str]) -> None:
        made: dict[str, Any] = {
            "long": text(),
            "bool": text() > 40,
            "float": torch.rand(3, 14),
            "image": torch.rand(3, 3, 8, 8),
            "none": None,
            "empty": torch.zeros(0, 4, dtype=torch.long),
        }
        fields = {f"[{i}]": made[kind] for i, kind in enumerate(kinds)}
        roles = roles_of(fields)
        assert {roles.ids, roles.labels, roles.mask, *roles.images} <= {*fields, None}


class Model(nn.Module):
    def forward(self, idx: torch.Tensor, targets: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


class TestStandard:
    def test_a_tuple_has_the_names_of_forward(self) -> None:
        ids = text()
        batch = (ids, masked(ids, -1), torch.rand(3, 3, 8, 8))
        found = standard(Model(), batch)
        assert torch.equal(found["input_ids"], ids)
        assert torch.equal(found["labels"], masked(ids, -100))
        assert found["pixel_values"] is batch[2]
        assert own_names(Model(), batch) == {
            "input_ids": "idx",
            "labels": "targets",
            "pixel_values": "images",
        }

    def test_a_loss_function_may_take_it_apart_in_another_order(self) -> None:
        ids = text()
        batch = (torch.rand(3, 3, 8, 8), masked(ids), ids)
        assert own_names(Model(), batch, loss_fn=lambda model, batch: None)["labels"] == "[1]"

    def test_a_changed_tuple_is_a_tuple(self) -> None:
        ids = text()
        batch = (ids, masked(ids), torch.rand(3, 3, 8, 8))
        changed = Inputs(Model(), batch).with_(targets=ids)
        assert isinstance(changed, tuple)
        assert changed[1] is ids

    def test_the_mask_becomes_one_of_ones_where_text_is(self) -> None:
        ids = text()
        ids[1, 10:] = 0
        found = standard(Model(), {"caption": ids, "pad_mask": ids == 0})
        assert torch.equal(found["attention_mask"], (ids != 0).long())

    def test_a_batch_of_transformers_is_left_as_it_is(self) -> None:
        made = make("llava")
        assert standard(made.model, made.batch) is made.batch


class TestLossCalls:
    def test_each_way_to_call_it(self) -> None:
        scores, targets = torch.randn(2, 4, 9), torch.randint(0, 9, (2, 4))
        targets[0, 0] = -1
        with watched_losses() as calls:
            nn.functional.cross_entropy(scores.transpose(1, 2), targets, ignore_index=-1)
            nn.CrossEntropyLoss(ignore_index=-1)(scores.flatten(0, 1), targets.flatten())
            nn.functional.nll_loss(scores.flatten(0, 1).log_softmax(-1), targets.flatten(), ignore_index=-1)
        assert [call.counted for call in calls] == [7, 7, 7]
        assert torch.equal(calls[0].scores, calls[1].scores)
        assert (calls[0].rows, calls[1].rows) == (2, None)

    def test_a_contrastive_loss_is_not_one_over_tokens(self) -> None:
        with watched_losses() as calls:
            nn.functional.cross_entropy(torch.randn(4, 4), torch.arange(4))
        assert token_losses(calls, torch.tensor([[7, 8]])) == []

    def test_probabilities_as_targets_are_not_counted(self) -> None:
        with watched_losses() as calls:
            nn.functional.cross_entropy(torch.randn(4, 4), torch.full((4, 4), 0.25))
        assert calls == []


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("nanovlm", ("input_ids", "targets", "attention_mask", ["images"])),
        ("llava_scratch", ("input_ids", "labels", None, ["images"])),
        ("flamingo", ("text", "labels", None, ["vision_x"])),
        ("prefix_lm", (None, None, None, ["image"])),
        ("qformer", ("input_ids", None, "attention_mask", ["image"])),
        ("clip", ("text", None, None, ["image"])),
        ("nanogpt_images", ("idx", "targets", None, ["images"])),
        ("captioner", ("caption", None, "pad_mask", ["img"])),
        ("hf_wrapper", ("tokens", "tgt", "attn_mask", ["image"])),
    ],
)
def test_hand_written_models(family: str, names: tuple[Any, ...]) -> None:
    made = make(family)
    inputs = Inputs(made.model, copy.copy(made.batch), apart=made.loss_fn is not None)
    assert (inputs.ids, inputs.labels, inputs.mask, inputs.images) == names
