"""The model among transformers' tools: saving, Auto classes, Trainer, PEFT, checkpointing, compile."""

from __future__ import annotations

import copy

import pytest
import torch
from small_models import config, model, pictures, with_images
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoProcessor,
    Trainer,
    TrainingArguments,
)

from minivlm.config import MiniVLMConfig
from minivlm.factory import build, load
from minivlm.model import MiniVLMForConditionalGeneration, MiniVLMModel
from minivlm.processor import MiniVLMProcessor

ROPE = "model.language_model.rotary_emb.inv_freq"


def same_state(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


@torch.no_grad()
def logits(made, batch):
    return made(**batch, use_cache=False).logits


class TestSaving:
    @pytest.mark.parametrize("tied", [True, False])
    def test_round_trip(self, tmp_path, tied):
        made, batch = model(tie_word_embeddings=tied), with_images()
        made.save_pretrained(tmp_path)
        again, report = MiniVLMForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values())
        same_state(made, again)
        assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied
        assert torch.equal(again.get_buffer(ROPE), made.get_buffer(ROPE))
        assert torch.equal(logits(made, batch), logits(again.eval(), batch))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_keeps_the_rotary_table(self, tmp_path, dtype):
        made = model()
        made.save_pretrained(tmp_path)
        again = MiniVLMForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype)
        assert again.lm_head.weight.dtype == dtype
        assert torch.equal(again.get_buffer(ROPE), made.get_buffer(ROPE))
        assert logits(again.eval(), with_images()).dtype == dtype
        assert torch.equal(made.to(dtype).get_buffer(ROPE), again.get_buffer(ROPE))

    def test_from_meta(self):
        made = model()
        with torch.device("meta"):
            empty = MiniVLMForConditionalGeneration(config())
        again = empty.to_empty(device="cpu").eval()
        again.load_state_dict(made.state_dict())
        assert torch.equal(logits(made, with_images()), logits(again, with_images()))

    def test_scaled_positions_survive(self, tmp_path):
        scaling = {
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
        }
        made = model(rope_parameters=scaling, max_position_embeddings=256)
        made.save_pretrained(tmp_path)
        again = MiniVLMForConditionalGeneration.from_pretrained(tmp_path).eval()
        assert torch.equal(logits(made, with_images()), logits(again, with_images()))


class TestAutoClasses:
    def test_round_trip(self, tmp_path):
        made, processor = build("tiny", seed=0)
        made.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        assert isinstance(AutoConfig.from_pretrained(tmp_path), MiniVLMConfig)
        assert AutoConfig.from_pretrained(tmp_path).to_diff_dict() == made.config.to_diff_dict()
        again = AutoModelForImageTextToText.from_pretrained(tmp_path)
        assert isinstance(again, MiniVLMForConditionalGeneration)
        same_state(made, again)
        base = AutoModel.from_pretrained(tmp_path)
        assert isinstance(base, MiniVLMModel)
        same_state(made.model, base)
        restored = AutoProcessor.from_pretrained(tmp_path)
        assert isinstance(restored, MiniVLMProcessor)
        image = (pictures(1, side=32)[0].permute(1, 2, 0).abs() * 60).byte().numpy()
        before, after = processor.ask("how many?", [image]), restored.ask("how many?", [image])
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_load_reads_a_checkpoint_folder(self, tmp_path):
        made, processor = build("tiny", seed=0)
        made.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        again, restored = load(tmp_path)
        same_state(made, again)
        assert restored.image_tokens == processor.image_tokens == 16


# transformers renames it to activation checkpointing; PEFT still asks by the old name.
renamed = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


class TestTraining:
    @renamed
    def test_gradient_checkpointing_changes_no_gradient(self):
        plain, batch = model().train(), with_images()
        saving = copy.deepcopy(plain)
        saving.gradient_checkpointing_enable()
        for made in (plain, saving):
            made(**batch, labels=batch["input_ids"]).loss.backward()
        for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, msg=name)

    def test_compiled_is_the_same(self):
        made, batch = model(), with_images()
        compiled = torch.compile(made, backend="eager")
        left = {**batch, "attention_mask": (torch.arange(12) > 0).long().expand(2, 12)}
        torch.testing.assert_close(logits(compiled, left), logits(made, left))

    def test_compiled_trains(self):
        made, batch = model().train(), with_images()
        expected = made(**batch, labels=batch["input_ids"]).loss
        found = torch.compile(made, backend="eager")(**batch, labels=batch["input_ids"]).loss
        torch.testing.assert_close(found, expected)
        found.backward()

    @renamed
    def test_lora(self):
        peft = pytest.importorskip("peft")
        made, batch = model(), with_images()
        before = logits(made, batch)
        settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(made, settings).train()
        adapted(**batch, labels=batch["input_ids"]).loss.backward()
        learning = [name for name, p in adapted.named_parameters() if p.grad is not None]
        assert learning
        assert all("lora_" in name for name in learning)
        torch.testing.assert_close(logits(adapted.merge_and_unload().eval(), batch), before)

    def test_trainer_runs(self, tmp_path):
        made = model().train()
        before = made.lm_head.weight.clone()
        batch = with_images(batch=4)
        rows = [
            {"input_ids": ids, "labels": ids, "pixel_values": image}
            for ids, image in zip(*batch.values(), strict=True)
        ]
        arguments = TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, report_to=[], use_cpu=True,
            save_strategy="no", disable_tqdm=True, logging_steps=1, dataloader_pin_memory=False,
            gradient_accumulation_steps=1,
        )  # fmt: skip
        trainer = Trainer(made, arguments, train_dataset=rows, eval_dataset=rows)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert len(losses) == 2
        assert all(0 < loss < 20 for loss in losses)
        assert not torch.equal(made.lm_head.weight, before)
        assert trainer.evaluate()["eval_loss"] > 0

    def test_resized_embeddings_stay_tied(self):
        made, batch = model(), with_images()
        before = logits(made, batch)
        made.resize_token_embeddings(60, mean_resizing=False)
        assert made.config.vocab_size == 60
        assert made.lm_head.weight is made.get_input_embeddings().weight
        torch.testing.assert_close(logits(made, batch)[..., :50], before)
