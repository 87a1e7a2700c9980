"""What inputs start from: right ones, made once and copied."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Weights, tokenizer and chat template of a tiny LLaVA, with its processor, and of a tiny Llama; a run of
# minivlm with two checkpoints, and what is recorded of it alone.
MODEL, TEXT_MODEL, RUN, RECORDED = "model", "text model", "run", "recorded"

_HERE = Path(__file__).parent
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}"
)
_SPECIAL = ["<unk>", "<s>", "<pad>", "<image>", "<|im_start|>", "<|im_end|>"]
_TRAIN = (
    *("train", "minivlm-run", "--preset", "tiny", "--steps", "100", "--max-steps", "6", "--save-every", "3"),
    *("--eval-every", "3", "--eval-samples", "4", "--batch-size", "2", "--threads", "1", "--no-preflight"),
)


@functools.cache
def configurations() -> dict[str, dict[str, Any]]:
    """Configurations of small models by model type, as their `config.json` has them."""
    return json.loads((_HERE / "configs.json").read_text(encoding="utf-8"))


class Bases:
    """Makes each base once for all processes that share `scratch`, in a child so that nothing of it stays."""

    def __init__(self, scratch: Path) -> None:
        self.folder = scratch / "bases"
        self.folder.mkdir(exist_ok=True)

    def __call__(self, name: str) -> Path:
        place = self.folder / name.replace(" ", "-")
        if name == RECORDED:
            return _HERE / "recorded"
        if not place.exists():
            pid = os.fork()
            if not pid:
                _make(name, place)
            os.waitpid(pid, 0)
        if not place.exists():
            raise RuntimeError(f"the base '{name}' can't be made")
        return place


def _make(name: str, place: Path) -> None:
    """Never returns: makes the folder beside its place, moves it there, and ends the process."""
    makers: dict[str, Callable[[Path], Path]] = {MODEL: _llava, TEXT_MODEL: _llama, RUN: _run}
    told = os.dup(2)
    for number in (1, 2):  # bars of progress
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    try:
        made = makers[name](Path(tempfile.mkdtemp(dir=place.parent)))
        with contextlib.suppress(OSError):  # another process was faster
            made.rename(place)
        shutil.rmtree(made.parent if made.parent != place.parent else made, ignore_errors=True)
        os._exit(0)
    except BaseException as error:
        os.write(told, f"the base '{name}' can't be made: {error!r}\n".encode())
        os._exit(1)


def _tokenizer() -> Any:
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    letters = Tokenizer(models.BPE(unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    letters.train_from_iterator(
        ["user assistant what is in the picture"],
        trainers.BpeTrainer(
            vocab_size=300, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
        ),
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=letters,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
    )


def _text_config(words: int) -> Any:
    import transformers

    return transformers.LlamaConfig(
        vocab_size=words,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=5,
        pad_token_id=2,
    )


def _llava(folder: Path) -> Path:
    import torch
    import transformers

    tokenizer = _tokenizer()
    vision = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
    )
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config=vision,
            text_config=_text_config(len(tokenizer)),
            image_token_index=3,
            vision_feature_layer=-1,
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


def _llama(folder: Path) -> Path:
    import torch
    import transformers

    tokenizer = _tokenizer()
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(_text_config(len(tokenizer))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _run(folder: Path) -> Path:
    from vlmdoctor.cli.main import run

    os.chdir(folder)
    sys.argv = ["vlmdoctor", *_TRAIN]
    with contextlib.suppress(SystemExit):
        run()
    return folder / "minivlm-run"
