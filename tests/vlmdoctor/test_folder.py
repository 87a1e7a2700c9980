"""A checkpoint folder as a target: its weights, and the batch that is made for it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import vlmdoctor.targets.checkpoint as checkpoint
from benchmarks.detection.models import make
from vlmdoctor.cli.init import command
from vlmdoctor.dryrun.command import DryRunOptions, wanted
from vlmdoctor.errors import UserError
from vlmdoctor.evidence.made_batch import MadeBatch
from vlmdoctor.examine import examine, model_rules
from vlmdoctor.reporters.full import render
from vlmdoctor.subject import Subject
from vlmdoctor.targets.resolve import resolve

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}"
)
SPECIAL = ["<unk>", "<s>", "<pad>", "<image>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny LLaVA with weights, tokenizer and processor."""
    folder = tmp_path_factory.mktemp("llava")
    letters = Tokenizer(models.BPE(unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    letters.train_from_iterator(
        ["user assistant what is in the picture"],
        trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=letters,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    text = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=5,
        pad_token_id=2,
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=vision, text_config=text, image_token_index=3, vision_feature_layer=-1
        )
    )
    model.save_pretrained(folder)
    images = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    )
    transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def report_on(folder: Path):
    target = resolve(str(folder))
    return examine(target.subject, target="", rules=model_rules(), missing_batch=target.missing_batch)


def change_weights(folder: Path, change) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def test_its_own_processor_makes_a_labelled_conversation(folder: Path) -> None:
    target = resolve(str(folder))
    batch, tokenizer = target.subject.batch, target.subject.tokenizer
    assert target.facts["batch"] == "two conversations, encoded by the processor in the folder"
    assert batch["input_ids"].shape[0] == 2 and (batch["input_ids"] == 3).sum() == 8
    assert not torch.equal(batch["pixel_values"][0], batch["pixel_values"][1])
    learned = [i for i in batch["labels"][0].tolist() if i != -100]
    assert tokenizer.decode(learned) == "A slow change from dark to light.<|im_end|>"
    report = report_on(folder)
    assert not report.findings and len(report.ran) > 70
    text = render(replace(report, facts=target.facts), color=False, verbose=False, quiet=False, width=200)
    assert text.startswith("batch    two conversations, encoded by the processor in the folder; a function")


def test_without_a_processor_the_batch_is_made_from_the_configuration(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()
    target = resolve(str(folder))
    assert target.facts["batch"] == "made from the configuration"
    assert target.subject.tokenizer is None and target.subject.batch["pixel_values"].shape == (2, 3, 28, 28)
    report = report_on(folder)
    assert not report.findings and len(report.ran) > 70


def test_a_processor_that_can_t_be_used_is_told(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('no images, please') }}")
    said = resolve(str(folder)).facts["batch"]
    assert said.startswith("made from the configuration; the chat template in")
    assert said.endswith("can't render a conversation: no images, please")


def test_a_processor_that_does_not_fit_the_model_is_found(folder: Path) -> None:
    settings = json.loads((folder / "processor_config.json").read_text())
    settings["patch_size"] = 7
    (folder / "processor_config.json").write_text(json.dumps(settings))
    report = report_on(folder)
    assert "image-token-count" in [finding.rule for finding in report.findings]


def test_a_batch_that_can_t_be_made_is_a_reason_and_no_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ValueError("no such grid\nand more")

    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    monkeypatch.setattr("vlmdoctor.targets.synthetic.batch_for", fails)
    target = resolve(str(folder))
    assert target.subject.batch is None and "batch" not in target.facts
    assert target.missing_batch is not None and "(ValueError: no such grid)" in target.missing_batch


def test_weights_of_another_shape_are_a_finding(folder: Path) -> None:
    def narrower(weights):
        (name,) = (n for n in weights if n.endswith("projector.linear_2.weight"))
        return {**weights, name: weights[name][:20].clone()}

    change_weights(folder, narrower)
    (finding,) = report_on(folder).findings
    assert (finding.rule, finding.severity) == ("checkpoint-shape-mismatch", "error")


def test_without_weights_in_memory_names_and_shapes_are_compared_all_the_same(folder: Path) -> None:
    from vlmdoctor.targets.meta_target import MetaTarget

    change_weights(folder, lambda weights: {n: t for n, t in weights.items() if "projector" not in n})
    target = resolve(str(folder), weightless=MetaTarget())
    report = examine(target.subject, target="", rules=model_rules(), depth="static")
    (finding,) = report.findings
    assert (
        finding.message == "the checkpoint has no weights for the projector, which will be newly initialised"
    )


def test_weights_that_memory_can_t_hold_are_examined_without(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not wanted(str(folder), None, DryRunOptions())
    size = (folder / "model.safetensors").stat().st_size
    monkeypatch.setattr(checkpoint, "_free_memory", lambda: 2.5 * size)
    assert wanted(str(folder), None, DryRunOptions())
    assert not wanted(str(folder), "forward", DryRunOptions())


def test_loading_says_nothing_of_its_own(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    change_weights(folder, lambda weights: {n: t for n, t in weights.items() if "projector" not in n})
    resolve(str(folder))
    assert capfd.readouterr() == ("", "")
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_a_file_cut_short_is_one_sentence(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(UserError, match="can't be loaded") as caught:
        resolve(str(folder))
    assert "\n" not in str(caught.value)


def test_a_function_that_returns_a_model_of_transformers_alone_gets_a_batch_too(
    whole: Path, tmp_path: Path
) -> None:
    script = tmp_path / "build.py"
    script.write_text(
        "import torch, transformers\n"
        "def model():\n"
        f"    return transformers.LlavaForConditionalGeneration.from_pretrained({str(whole)!r})\n"
        "def no_model_of_transformers():\n    return torch.nn.Linear(2, 2)\n"
    )
    target = resolve(f"{script}:model")
    assert target.facts["batch"] == "made from the configuration"
    assert target.subject.batch["pixel_values"].shape == (2, 3, 28, 28)
    assert resolve(f"{script}:no_model_of_transformers").subject.batch is None


class WithASpareWay(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lm_head = torch.nn.Embedding(32, 16), torch.nn.Linear(16, 32)
        self.spare = torch.nn.Linear(16, 16)

    def forward(self, input_ids, labels, fine=False):
        hidden = self.embed(input_ids)
        logits = self.lm_head(self.spare(hidden) if fine else hidden)
        return {"loss": torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())}


def test_what_a_made_batch_leaves_out_is_no_warning() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 32, (2, 8))
    subject = Subject(WithASpareWay(), batch={"input_ids": ids, "labels": ids.roll(-1, 1)})
    rules = [rule for rule in model_rules() if rule.name == "no-gradient"]
    for given, severity in (([], "warning"), ([MadeBatch(how="made from the configuration")], "info")):
        (finding,) = examine(subject, target="", rules=rules, given=given).findings
        assert (finding.severity, finding.at) == (severity, ("spare (2 tensors)",))


def test_images_are_made_smaller_where_the_context_would_not_hold_them(tmp_path: Path) -> None:
    made = make("qwen2_5_vl").model
    made.config.get_text_config().max_position_embeddings = 24
    made.save_pretrained(tmp_path)
    target = resolve(str(tmp_path))
    assert target.subject.batch["input_ids"].shape[1] <= 24


def test_a_folder_of_adapters_is_told_from_one_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="holds PEFT's adapters and no model"):
        resolve(str(tmp_path))


def test_a_made_batch_is_no_sign_of_what_is_meant(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    command(str(folder), dry_run=True, force=False, trust_remote_code=False)
    told = capsys.readouterr().out
    assert 'vision = "train"' in told and "supervise" not in told and "image-tokens" not in told


def test_weights_that_raise_once_more_without_those_of_other_sizes_are_one_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*given: object, ignore_mismatched_sizes: bool = False, **options: object) -> object:
        if not ignore_mismatched_sizes:
            raise RuntimeError("set ignore_mismatched_sizes=True to load them all the same")
        raise NotImplementedError("aten::equal: attempted to run this operator with Meta tensors")

    monkeypatch.setattr(checkpoint, "loaded", loaded)
    with pytest.raises(UserError, match=r"the weights in .* can't be loaded: aten::equal"):
        resolve(str(folder))
