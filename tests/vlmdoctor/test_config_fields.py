"""The one table of what configurations call their parts."""

from types import SimpleNamespace

import pytest
from transformers import LlamaConfig, LlavaConfig

from vlmdoctor.knowledge.config_fields import image_token, text_config


@pytest.mark.parametrize("name", ["text_config", "llm_config", "language_config", "decoder"])
def test_the_text_part_is_found_under_each_name(name: str) -> None:
    part = SimpleNamespace(vocab_size=7)
    assert text_config(SimpleNamespace(**{name: part})) is part
    assert text_config({name: part}) is part


def test_the_text_part_of_code_that_transformers_does_not_know() -> None:
    config, part = LlamaConfig(), LlamaConfig(vocab_size=7)
    assert text_config(config) is config
    config.llm_config = part
    assert text_config(config) is part


def test_transformers_own_answer_comes_first() -> None:
    config = LlavaConfig()
    assert text_config(config) is config.text_config
    assert text_config(None) is None


def test_a_placeholder_s_text_is_no_id() -> None:
    assert image_token(SimpleNamespace(image_token="<image>")) is None
    assert image_token(SimpleNamespace(image_token=5)) == 5
    assert image_token(SimpleNamespace(image_token_index=5, image_token="<image>")) == 5
    assert image_token(None) is None
