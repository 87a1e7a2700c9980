"""The vision encoders: our own, and CLIP and SigLIP from transformers, fresh or from a checkpoint."""

from __future__ import annotations

import pytest
import torch
from small_models import config, model, pictures, with_images
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTConfig,
)

import minivlm
from minivlm.errors import UserError
from minivlm.model import MiniVLMForConditionalGeneration
from minivlm.vision import library_settings, vision_encoder

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}


def randomised(tower):
    """Weights of a size at which every one of them matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return tower.eval()


@pytest.fixture
def clip_folder(tmp_path):
    # Unlike the original in activation and epsilon, as some CLIP checkpoints are.
    tower = CLIPVisionModel(CLIPVisionConfig(**SMALL, hidden_act="gelu", layer_norm_eps=1e-2))
    randomised(tower).save_pretrained(tmp_path / "clip")
    return tower, str(tmp_path / "clip")


@pytest.fixture
def siglip_folder(tmp_path):
    tower = randomised(SiglipVisionModel(SiglipVisionConfig(**SMALL)))
    tower.save_pretrained(tmp_path / "siglip")
    return tower, str(tmp_path / "siglip")


class TestConvViT:
    @pytest.mark.parametrize(("side", "patch"), [(16, 8), (32, 8), (32, 4), (16, 16)])
    def test_one_feature_per_patch(self, side, patch):
        encoder = vision_encoder(config(image_size=side, patch_size=patch))
        assert encoder(pictures(3, side=side)).shape == (3, (side // patch) ** 2, 16)

    def test_each_image_is_seen_alone(self):
        encoder = model().model.vision_encoder
        images = pictures(3)
        torch.testing.assert_close(encoder(images)[1:2], encoder(images[1:2]))

    def test_tells_places_apart(self):
        encoder = model().model.vision_encoder
        features = encoder(torch.zeros(1, 3, 16, 16))[0]
        assert torch.cdist(features, features).fill_diagonal_(1).min() > 0.1


class TestLibraryEncoder:
    @pytest.mark.parametrize("layer", [-1, -2, 1])
    def test_clip_without_its_class_token(self, clip_folder, layer):
        tower, folder = clip_folder
        made, _ = minivlm.build("tiny", {"vision_layer": layer}, vision_from=folder, seed=0)
        states = tower(pictures(2), output_hidden_states=True).hidden_states
        torch.testing.assert_close(made.eval().model.vision_encoder(pictures(2)), states[layer][:, 1:])

    def test_siglip_has_no_class_token_and_a_last_norm(self, siglip_folder):
        tower, folder = siglip_folder
        made, _ = minivlm.build("tiny", vision_from=folder, seed=0)
        expected = tower(pictures(2)).last_hidden_state
        torch.testing.assert_close(made.eval().model.vision_encoder(pictures(2)), expected)

    @pytest.mark.parametrize("layer", [-2, 2])
    def test_siglip_layer_before_the_last(self, siglip_folder, layer):
        tower, folder = siglip_folder
        made, _ = minivlm.build("tiny", {"vision_layer": layer}, vision_from=folder, seed=0)
        states = tower(pictures(2), output_hidden_states=True).hidden_states
        torch.testing.assert_close(made.eval().model.vision_encoder(pictures(2)), states[layer])

    def test_whole_clip_checkpoint(self, tmp_path):
        whole = CLIPModel(
            CLIPConfig(
                text_config={
                    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
                    "num_attention_heads": 2, "vocab_size": 20,
                },
                vision_config=SMALL,
                projection_dim=8,
            )
        )  # fmt: skip
        randomised(whole).save_pretrained(tmp_path)
        made, _ = minivlm.build("tiny", vision_from=str(tmp_path), seed=0)
        expected = whole.vision_model(pictures(1)).last_hidden_state[:, 1:]
        torch.testing.assert_close(made.eval().model.vision_encoder(pictures(1)), expected)

    def test_settings_come_from_the_checkpoint(self, clip_folder):
        made, processor = minivlm.build("tiny", vision_from=clip_folder[1], seed=0)
        assert library_settings(clip_folder[1]).items() <= made.config.to_dict().items()
        assert processor.image_processor.size == 16
        assert processor.image_processor.image_mean[0] == pytest.approx(0.481, abs=1e-3)
        assert processor.image_tokens == made.config.image_tokens == 4

    @pytest.mark.parametrize("kind", ["clip", "siglip"])
    @pytest.mark.parametrize("layer", [-1, -2])
    def test_every_weight_gets_a_gradient(self, kind, layer):
        # One that got none would stop data-parallel training, and be a finding about a healthy model.
        made = model(vision_kind=kind, vision_layer=layer, vision_num_hidden_layers=2).train()
        batch = with_images()
        made(**batch, labels=batch["input_ids"]).loss.backward()
        assert [name for name, p in made.named_parameters() if p.grad is None] == []

    @pytest.mark.parametrize("kind", ["clip", "siglip"])
    def test_round_trip(self, tmp_path, kind):
        made, batch = model(vision_kind=kind), with_images()
        made.save_pretrained(tmp_path)
        again = MiniVLMForConditionalGeneration.from_pretrained(tmp_path).eval()
        assert torch.equal(made(**batch).logits, again(**batch).logits)


class TestRefusals:
    def test_path_that_does_not_exist(self, tmp_path):
        with pytest.raises(UserError, match="nowhere"):
            minivlm.build("tiny", vision_from=str(tmp_path / "nowhere"))

    def test_folder_without_a_model(self, tmp_path):
        with pytest.raises(UserError, match="holds no model"):
            minivlm.build("tiny", vision_from=str(tmp_path))

    def test_another_kind_of_model(self, tmp_path):
        ViTConfig().save_pretrained(tmp_path)
        with pytest.raises(UserError, match=r"'vit'.*CLIP or SigLIP"):
            minivlm.build("tiny", vision_from=str(tmp_path))

    def test_settings_without_weights(self, tmp_path):
        CLIPVisionConfig(**SMALL).save_pretrained(tmp_path)
        with pytest.raises(UserError, match="weights"):
            minivlm.build("tiny", vision_from=str(tmp_path))

    def test_weights_of_another_size(self, clip_folder):
        with pytest.raises(UserError, match="weights"):
            minivlm.build("tiny", {"vision_hidden_size": 24}, vision_from=clip_folder[1])

    def test_activation_that_does_not_exist(self):
        with pytest.raises(UserError, match="vision_hidden_act"):
            minivlm.build("tiny", {"vision_kind": "clip", "vision_hidden_act": "gellu"})
