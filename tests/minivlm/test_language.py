"""The decoder: who sees whom, rotary positions, the cache."""

from __future__ import annotations

import pytest
import torch
from small_models import config, model, text

from minivlm.language import RMSNorm, RotaryEmbedding, attention_allowed, positions, rotate

CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@torch.no_grad()
def logits(made, ids, **inputs):
    return made(input_ids=ids, use_cache=False, **inputs).logits


class TestWhoSeesWhom:
    @pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"num_key_value_heads": 4}, {"head_dim": 12}])
    @pytest.mark.parametrize("at", [1, 5, 9])
    def test_a_token_changes_nothing_before_it(self, changes, at):
        made, ids = model(**changes), text(1, 10)
        before = logits(made, ids)
        ids[0, at] = (ids[0, at] + 1 - 4) % 46 + 4
        after = logits(made, ids)
        assert torch.equal(before[:, :at], after[:, :at])
        assert not torch.allclose(before[:, at:], after[:, at:], **CLOSE)

    def test_other_samples_change_nothing(self):
        made, ids = model(), text(3, 8)
        alone = logits(made, ids[1:2])
        torch.testing.assert_close(logits(made, ids)[1:2], alone, **CLOSE)
        ids[0], ids[2] = text(2, 8, seed=5)
        torch.testing.assert_close(logits(made, ids)[1:2], alone, **CLOSE)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("filler", [0, 17])
    def test_padding_changes_nothing(self, side, filler):
        made, ids = model(), text(2, 6)
        plain = logits(made, ids)
        pad, mask = torch.full((2, 3), filler), torch.ones(2, 6, dtype=torch.long)
        order = (lambda a, b: [b, a]) if side == "left" else (lambda a, b: [a, b])
        padded = torch.cat(order(ids, pad), dim=1)
        mask = torch.cat(order(mask, torch.zeros(2, 3, dtype=torch.long)), dim=1)
        result = logits(made, padded, attention_mask=mask)
        assert result.isfinite().all()
        kept = result[:, 3:] if side == "left" else result[:, :6]
        torch.testing.assert_close(kept, plain, **CLOSE)

    def test_padding_of_several_lengths_at_once(self):
        made, ids = model(), text(2, 7)
        mask = torch.ones(2, 7, dtype=torch.long)
        mask[0, :4] = 0
        result = logits(made, ids, attention_mask=mask)
        torch.testing.assert_close(result[:1, 4:], logits(made, ids[:1, 4:]), **CLOSE)
        torch.testing.assert_close(result[1:], logits(made, ids[1:]), **CLOSE)

    def test_packed_samples_see_only_themselves(self):
        made = model()
        a, b, c = text(1, 4, seed=1), text(1, 7, seed=2), text(1, 3, seed=3)
        packed = torch.cat([a, b, c, torch.zeros(1, 2, dtype=torch.long)], dim=1)
        segments = torch.tensor([[1] * 4 + [2] * 7 + [3] * 3 + [0] * 2])
        result = logits(made, packed, segment_ids=segments)
        assert result.isfinite().all()
        for part, start in ((a, 0), (b, 4), (c, 11)):
            kept = result[:, start : start + part.shape[1]]
            torch.testing.assert_close(kept, logits(made, part), **CLOSE)

    def test_packed_loss_is_that_of_the_samples(self):
        made, a, b = model(), text(1, 5, seed=1), text(1, 8, seed=2)
        packed = torch.cat([a, b], dim=1)
        segments = torch.tensor([[1] * 5 + [2] * 8])
        with torch.no_grad():
            together = made(input_ids=packed, labels=packed, segment_ids=segments).loss
            apart = [made(input_ids=one, labels=one, num_items_in_batch=4 + 7).loss for one in (a, b)]
        torch.testing.assert_close(together, sum(apart), **CLOSE)

    def test_a_mask_in_four_dimensions_is_taken_as_it_is(self):
        made, ids = model(), text(1, 6)
        mask = torch.ones(6, 6, dtype=torch.bool).tril()[None, None]
        torch.testing.assert_close(logits(made, ids, attention_mask=mask), logits(made, ids), **CLOSE)

    def test_the_fast_way_is_taken_where_causality_is_enough(self):
        right = torch.tensor([[1, 1, 0]])
        assert attention_allowed(right, None, 3, 0, right.device) is None
        assert attention_allowed(None, None, 1, 5, right.device) is None
        left = attention_allowed(torch.tensor([[0, 1, 1]]), None, 3, 0, right.device)
        assert left[0, 0].int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]

    def test_positions_start_with_each_sample(self):
        mask, segments = torch.tensor([[0, 0, 1, 1, 1]]), torch.tensor([[1, 1, 2, 2, 0]])
        device = mask.device
        assert positions(mask, None, 1, 5, 0, device).tolist() == [[0, 0, 0, 1, 2]]
        assert positions(None, segments, 1, 5, 0, device).tolist() == [[0, 1, 0, 1, 0]]
        assert positions(None, None, 2, 2, 7, device).tolist() == [[7, 8], [7, 8]]


class TestCache:
    @torch.no_grad()
    @pytest.mark.parametrize("pieces", [[1] * 9, [4, 1, 4], [8, 1]])
    def test_in_pieces_as_at_once(self, pieces):
        made, ids = model(), text(2, 9)
        whole, cache, found, start = logits(made, ids), None, [], 0
        for length in pieces:
            out = made(input_ids=ids[:, start : start + length], past_key_values=cache, use_cache=True)
            cache, start = out.past_key_values, start + length
            found.append(out.logits)
        torch.testing.assert_close(torch.cat(found, dim=1), whole, **CLOSE)

    @torch.no_grad()
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_with_padding(self, side):
        made, ids = model(), text(1, 8)
        mask = torch.ones(1, 8, dtype=torch.long)
        mask[:, slice(0, 2) if side == "left" else slice(3, 5)] = 0
        kept = mask[0].bool()
        whole = logits(made, ids[:, kept])
        first = made(input_ids=ids[:, :6], attention_mask=mask[:, :6], use_cache=True)
        second = made(
            input_ids=ids[:, 6:], attention_mask=mask, past_key_values=first.past_key_values, use_cache=True
        )
        torch.testing.assert_close(second.logits, whole[:, -2:], **CLOSE)

    @torch.no_grad()
    def test_a_cache_that_is_given_is_used_even_while_training(self):
        made, ids = model().train(), text(1, 6)
        whole = logits(made, ids)
        cache = made(input_ids=ids[:, :4], use_cache=True).past_key_values
        rest = made(input_ids=ids[:, 4:], past_key_values=cache).logits
        torch.testing.assert_close(rest, whole[:, 4:], **CLOSE)


class TestRotary:
    def test_only_distances_count(self):
        made, ids = model(), text(1, 8)
        places = torch.arange(8)[None]
        plain = logits(made, ids, position_ids=places)
        torch.testing.assert_close(logits(made, ids, position_ids=places + 37), plain, atol=1e-4, rtol=1e-3)
        assert not torch.allclose(logits(made, ids, position_ids=places * 2), plain, **CLOSE)

    def test_rotation_keeps_lengths_and_turns_by_the_position(self):
        rotary = RotaryEmbedding(config(head_dim=4))
        cos, sin = rotary(torch.tensor([[0, 1]]), torch.float32)
        x = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(1, 1, 2, 4)
        turned = rotate(x, cos, sin)
        expected = torch.tensor(
            [[1.0, 0, 0, 0], [torch.cos(torch.tensor(1.0)), 0, torch.sin(torch.tensor(1.0)), 0]]
        )
        torch.testing.assert_close(turned[0, 0], expected)

    def test_the_table_is_made_from_head_dim(self):
        assert RotaryEmbedding(config(head_dim=12)).inv_freq.shape == (6,)
        assert RotaryEmbedding(config()).inv_freq.shape == (4,)

    @pytest.mark.parametrize("move", ["bfloat16", "half", "to_empty", "double"])
    def test_moves_leave_the_table_whole(self, move):
        rotary = RotaryEmbedding(config(head_dim=32))
        expected = rotary.inv_freq.clone()
        if move == "to_empty":
            with torch.device("meta"):
                rotary = RotaryEmbedding(config(head_dim=32))
            rotary.to_empty(device="cpu")
        else:
            rotary = getattr(rotary, move)()
        assert rotary.inv_freq.dtype == torch.float32
        assert torch.equal(rotary.inv_freq, expected)

    def test_late_positions_differ_in_bfloat16(self):
        cos, _ = RotaryEmbedding(config()).bfloat16()(torch.tensor([[256, 257]]), torch.float32)
        assert not torch.allclose(cos[0, 0, 0], cos[0, 0, 1])

    @pytest.mark.parametrize(
        "scaling",
        [
            {"rope_type": "linear", "factor": 4.0},
            {"rope_type": "dynamic", "factor": 4.0},
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        ],
    )
    def test_scalings(self, scaling):
        plain, scaled = (
            config(max_position_embeddings=16),
            config(max_position_embeddings=16, rope_parameters={"rope_theta": 10000.0, **scaling}),
        )
        short, long = torch.arange(16)[None], torch.arange(64)[None]
        tables = {name: RotaryEmbedding(c) for name, c in (("plain", plain), ("scaled", scaled))}
        kind = scaling["rope_type"]
        slowest = tables["plain"](long, torch.float32)[1], tables["scaled"](long, torch.float32)[1]
        # The slowest frequency turns less far at the end of a text that is too long: that is the point.
        assert slowest[1][0, 0, -1, -1].abs() < slowest[0][0, 0, -1, -1].abs()
        if kind == "linear":
            torch.testing.assert_close(tables["scaled"].inv_freq, tables["plain"].inv_freq / 4)
        if kind == "dynamic":
            same = tables["scaled"](short, torch.float32)[0], tables["plain"](short, torch.float32)[0]
            torch.testing.assert_close(*same)
        made = model(max_position_embeddings=16, rope_parameters={"rope_theta": 10000.0, **scaling})
        assert logits(made, text(1, 64)).isfinite().all()


def test_rms_norm_is_its_formula():
    norm, x = RMSNorm(8, 1e-5), torch.randn(3, 8)
    norm.weight.data.uniform_(0.5, 2)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
