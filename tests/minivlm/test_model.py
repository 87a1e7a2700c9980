"""The whole model: images among the tokens, the loss, the first loss, generation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from small_models import IMAGE, config, model, pictures, text, with_images

import minivlm
from minivlm.data import Collator, load_data
from minivlm.projector import Projector, pixel_shuffle

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@torch.no_grad()
def logits(made, **batch):
    return made(**batch, use_cache=False).logits


class TestImages:
    def test_an_exchanged_image_moves_its_sample_only(self):
        made, batch = model(), with_images(batch=3)
        before = logits(made, **batch)
        batch["pixel_values"][1] = pictures(1, seed=9)
        after = logits(made, **batch)
        assert torch.allclose(before[[0, 2]], after[[0, 2]], **CLOSE)
        assert torch.equal(before[1, :1], after[1, :1])
        assert (before[1, 1:] - after[1, 1:]).abs().amax(-1).min() > 1e-4

    def test_several_images_in_a_sample_are_taken_in_order(self):
        made, batch = model(), with_images(batch=2, images=2)
        before = logits(made, **batch)
        batch["pixel_values"][3] = pictures(1, seed=9)
        after = logits(made, **batch)
        assert torch.allclose(before[0], after[0], **CLOSE)
        assert torch.equal(before[1, :5], after[1, :5])
        assert not torch.allclose(before[1, 5], after[1, 5], **CLOSE)

    def test_features_stand_where_the_placeholders_are(self):
        made, batch = model(), with_images()
        embeds = made.model.embed(**batch)
        features = made.model.get_image_features(batch["pixel_values"])
        assert features.shape == (2, 4, 32)
        torch.testing.assert_close(embeds[:, 1:5], features)
        words = made.get_input_embeddings()(batch["input_ids"])
        assert torch.equal(embeds[:, 5:], words[:, 5:])
        torch.testing.assert_close(logits(made, inputs_embeds=embeds), logits(made, **batch))

    def test_samples_with_and_without_images_in_one_batch(self):
        made, batch = model(), with_images(batch=2)
        batch["input_ids"][0] = text(1, 12, seed=4)
        batch["pixel_values"] = batch["pixel_values"][1:]
        mixed = logits(made, **batch)
        torch.testing.assert_close(mixed[:1], logits(made, input_ids=batch["input_ids"][:1]), **CLOSE)

    @pytest.mark.parametrize("images", [0, 1, 3])
    def test_counts_that_differ_are_told(self, images):
        made, batch = model(), with_images(batch=2)
        batch["pixel_values"] = pictures(images) if images else None
        with pytest.raises(
            ValueError, match=rf"8 image tokens .* {4 * images} image features \({images} images of 4\)"
        ):
            made(**batch)

    def test_text_alone_trains(self):
        made, ids = model().train(), text(2, 8)
        made(input_ids=ids, labels=ids).loss.backward()
        assert made.model.language_model.layers[0].mlp.up_proj.weight.grad.abs().sum() > 0
        assert made.model.vision_proj.layers[0].weight.grad is None

    def test_every_parameter_learns_from_an_image(self):
        made, batch = model(tie_word_embeddings=False).train(), with_images()
        made(
            **batch, labels=batch["input_ids"].masked_fill(batch["input_ids"] == IMAGE, -100)
        ).loss.backward()
        still = [name for name, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        # A key's bias alone would get none: it adds the same to all scores of a query. It shares its tensor
        # with the query's and the value's.
        assert still == []


class TestProjector:
    @pytest.mark.parametrize("kind", ["linear", "mlp", "layernorm_mlp"])
    @pytest.mark.parametrize("shuffle", [1, 2])
    def test_shapes(self, kind, shuffle):
        made = config(projector=kind, pixel_shuffle=shuffle, image_size=32, projector_hidden_size=24)
        out = Projector(made)(torch.randn(2, 16, 16))
        assert out.shape == (2, 16 // shuffle**2, 32)
        assert out.shape[1] == made.image_tokens

    def test_pixel_shuffle_folds_neighbours(self):
        grid = torch.arange(16.0).view(1, 16, 1)
        assert pixel_shuffle(grid, 2)[0].tolist() == [
            [0, 1, 4, 5],
            [2, 3, 6, 7],
            [8, 9, 12, 13],
            [10, 11, 14, 15],
        ]


class TestLoss:
    def labels(self, ids):
        labels = ids.clone()
        labels[:, :6] = -100
        labels[0, -2:] = -100
        return labels

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("items", [None, 7, torch.tensor(40)])
    def test_is_the_shifted_cross_entropy(self, training, items):
        made, batch = model().train(training), with_images()
        labels = self.labels(batch["input_ids"])
        found = made(**batch, labels=labels, num_items_in_batch=items).loss
        flat = logits(made, **batch)[:, :-1].reshape(-1, 50)
        expected = F.cross_entropy(flat, labels[:, 1:].reshape(-1), reduction="sum")
        divisor = (labels[:, 1:] != -100).sum() if items is None else items
        torch.testing.assert_close(found.detach(), expected / divisor, **CLOSE)

    def test_accumulated_gradients_are_those_of_the_whole_batch(self):
        made, batch = model().train(), with_images()
        labels = self.labels(batch["input_ids"])
        count = (labels[:, 1:] != -100).sum()
        made(**batch, labels=labels).loss.backward()
        whole = [p.grad.clone() for p in made.parameters()]
        made.zero_grad()
        for i in range(2):
            part = {name: value[i : i + 1] for name, value in batch.items()}
            made(**part, labels=labels[i : i + 1], num_items_in_batch=count).loss.backward()
        for parameter, expected in zip(made.parameters(), whole, strict=True):
            torch.testing.assert_close(parameter.grad, expected, **CLOSE)

    def test_nothing_supervised_is_zero_with_zero_gradients(self):
        made, batch = model().train(), with_images()
        loss = made(**batch, labels=torch.full((2, 12), -100)).loss
        assert loss.item() == 0
        loss.backward()
        gradients = [p.grad for p in made.parameters() if p.grad is not None]
        assert gradients
        assert all(not g.any() for g in gradients)

    def test_logits_are_left_out_in_training_only(self):
        made, batch = model(), with_images()
        assert made(**batch, labels=batch["input_ids"]).logits.shape == (2, 12, 50)
        assert made.train()(**batch, labels=batch["input_ids"]).logits is None
        assert made(**batch).logits.shape == (2, 12, 50)

    def test_only_the_last_logits(self):
        made, batch = model(), with_images()
        whole = logits(made, **batch)
        torch.testing.assert_close(logits(made, **batch, logits_to_keep=2), whole[:, -2:])
        torch.testing.assert_close(
            logits(made, **batch, logits_to_keep=torch.tensor([3, 7])), whole[:, [3, 7]]
        )


SMALL_TOWER = {
    "vision_kind": "conv_vit",
    "image_size": 32,
    "patch_size": 8,
    "vision_hidden_size": 32,
    "vision_intermediate_size": 32,
    "vision_num_hidden_layers": 1,
    "vision_num_attention_heads": 2,
}


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("tiny", {}),
        ("tiny8", {}),
        ("colab", {}),
        ("minimind-v", {**SMALL_TOWER, "num_hidden_layers": 3}),
        ("minimind-3v", {**SMALL_TOWER, "num_hidden_layers": 2}),
    ],
)
def test_the_first_loss_is_that_of_a_guess(preset, changes):
    made, processor = minivlm.build(preset, changes, seed=0)
    data = load_data("digits", "train", seed=0)
    batch = Collator(processor, max_length=128)([data[i] for i in range(8)])
    with torch.no_grad():
        loss = made.train()(**{k: v for k, v in batch.items() if torch.is_tensor(v)}).loss
    assert loss.item() == pytest.approx(math.log(made.config.vocab_size), abs=0.1)


class TestGenerate:
    def greedy(self, made, ids, pixels, steps):
        for _ in range(steps):
            following = logits(made, input_ids=ids, pixel_values=pixels)[:, -1:].argmax(-1)
            ids = torch.cat([ids, following], dim=1)
        return ids

    @pytest.mark.parametrize("cached", [True, False])
    def test_greedy_is_the_likeliest_token_each_time(self, cached):
        made, batch = model(), with_images(images=2)
        found = made.generate(
            **batch, attention_mask=torch.ones(2, 12, dtype=torch.long), max_new_tokens=6, min_new_tokens=6,
            do_sample=False, use_cache=cached, suppress_tokens=None, eos_token_id=[],
        )  # fmt: skip
        assert torch.equal(found, self.greedy(made, batch["input_ids"], batch["pixel_values"], 6))

    def test_left_padding_changes_no_answer(self):
        made, batch = model(), with_images()
        options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": []}
        plain = made.generate(**batch, attention_mask=torch.ones(2, 12, dtype=torch.long), **options)
        padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), batch["input_ids"]], dim=1)
        mask = (torch.arange(15) >= 3).long().expand(2, 15)
        found = made.generate(
            input_ids=padded, attention_mask=mask, pixel_values=batch["pixel_values"], **options
        )
        assert torch.equal(found[:, 15:], plain[:, 12:])

    def test_beams_keep_each_samples_images_together(self):
        made, batch = model(), with_images(images=2)
        _, inputs = made._expand_inputs_for_generation(
            3, input_ids=batch["input_ids"], pixel_values=batch["pixel_values"]
        )
        first, second = batch["pixel_values"].split(2)
        assert torch.equal(inputs["pixel_values"], torch.cat([first] * 3 + [second] * 3))
        out = made.generate(
            **batch,
            num_beams=3,
            max_new_tokens=3,
            do_sample=False,
            attention_mask=torch.ones_like(batch["input_ids"]),
        )
        assert out.shape[0] == 2

    def test_a_repeated_sample_answers_like_itself(self):
        made, batch = model(), with_images(batch=1, images=2)
        options = {
            "max_new_tokens": 4,
            "do_sample": False,
            "attention_mask": torch.ones(1, 12, dtype=torch.long),
        }
        one = made.generate(**batch, **options)
        beams = made.generate(**batch, num_beams=1, num_return_sequences=1, **options)
        assert torch.equal(one, beams)
