"""The bundled tokenizer: byte-level BPE of the built-in data's texts, 680 entries with the special tokens.

`python -m minivlm.tokenizer` makes the files under minivlm/assets/tokenizer/ again, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from minivlm.errors import UserError, reason_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parent / "assets" / "tokenizer"
VOCABULARY = 680
PAD, BOS, STOP, IMAGE = "<|pad|>", "<|im_start|>", "<|im_end|>", "<image>"

# `{% generation %}` marks what the model is to learn: the answers and the stop token after each.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- set ns = namespace(text='') -%}
{%- if message['content'] is string -%}
{%- set ns.text = message['content'] -%}
{%- else -%}
{%- for part in message['content'] -%}
{%- if part['type'] == 'image' -%}{%- set ns.text = ns.text + '<image>\\n' -%}
{%- elif part['type'] == 'text' -%}{%- set ns.text = ns.text + part['text'] -%}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- ns.text + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- ns.text + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def bundled_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer that ships with minivlm."""
    return load_tokenizer(str(FOLDER))


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer at `path` (a folder or a hub name), with `<image>`, a stop token and padding.

    What it lacks of these is added to it, so that its length can exceed the embedding's rows afterwards.

    Raises:
        UserError: It can't be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:
        # The tokenizers library raises bare Exceptions for files that it can't parse.
        reason = reason_of(error)
        raise UserError(f"the tokenizer '{path}' can't be loaded: {reason}") from error
    wanted = [IMAGE]
    if not re.search(r"{%-?\s*generation\b", tokenizer.chat_template or ""):
        # Without `{% generation %}` nobody could tell which tokens are answers.
        wanted += [BOS, STOP]
        tokenizer.chat_template = CHAT_TEMPLATE
        tokenizer.eos_token = STOP
    words = tokenizer.get_vocab()
    tokenizer.add_tokens([token for token in wanted if token not in words], special_tokens=True)
    if tokenizer.eos_token_id is None:
        tokenizer.add_special_tokens({"eos_token": STOP})
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        # Padding that looks like the stop token would mask it, and the model would never learn to stop.
        tokenizer.add_special_tokens({"pad_token": PAD})
    return tokenizer


def make(texts: Iterable[str]) -> PreTrainedTokenizerBase:
    """A byte-level BPE tokenizer of `texts`: any text can be encoded, and none becomes unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    roles = [f"{role}\n" for role in ("system", "user", "assistant")]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, STOP, IMAGE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([*roles, *texts], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=STOP,
        additional_special_tokens=[IMAGE],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=8192,
    )


if __name__ == "__main__":
    from minivlm.data import corpus_texts

    make(corpus_texts()).save_pretrained(FOLDER)
    print(f"wrote {FOLDER}")
