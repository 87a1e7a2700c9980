"""What a foreign tokenizer prints, and how much it makes of a short text, stays within bounds."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vlmdoctor.errors import UserError
from vlmdoctor.evidence.data import Row
from vlmdoctor.look import samples
from vlmdoctor.sandbox.closed import nothing_fetched
from vlmdoctor.targets.conversation import MOST_TOKENS, conversation


def test_what_compiled_code_prints_does_not_reach_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    print("before")
    with nothing_fetched():
        os.write(1, b"Ignored unknown kwarg option a\rb\n")
    print("after")
    assert capfd.readouterr().out == "before\nafter\n"


def test_a_short_question_that_becomes_very_many_tokens_is_refused(tmp_path: Path) -> None:
    class Endless:
        chat_template = "{{ messages }}"

        def apply_chat_template(self, conversations: list, **options: object) -> dict:
            return {"input_ids": torch.zeros(len(conversations), MOST_TOKENS + 1, dtype=torch.long)}

    with pytest.raises(UserError, match=r"a short question with its answer becomes 100,001 tokens"):
        conversation(Endless(), tmp_path)


def test_a_sample_is_drawn_up_to_a_number_of_tokens() -> None:
    ids = tuple(range(samples.MOST_TOKENS + 5))
    row = Row(origin="batch", name="batch, row 0", ids=ids, roles=("other",) * len(ids))
    reader = SimpleNamespace(pieces=None, words=SimpleNamespace(names=()))
    drawn = [token for _, tokens in samples._pieces(row, reader) for token in tokens]
    assert [token.id for token in drawn] == list(ids[: samples.MOST_TOKENS])
