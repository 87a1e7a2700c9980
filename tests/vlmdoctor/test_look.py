"""`vlmdoctor look`: what it draws, in every format, of batches, datasets and folders."""

from __future__ import annotations

import json
import re

import pytest
import torch
from conversations import FAMILIES, IGNORED, STOPS, made, tokenizer
from typer.testing import CliRunner

from vlmdoctor.cli.main import build_app, is_user_error
from vlmdoctor.look import document, page, terminal
from vlmdoctor.look.samples import looks_of
from vlmdoctor.subject import Subject


def look(*arguments: str) -> tuple[int, str, str]:
    """Exit status, output and the sentence for the user, as the command line ends."""
    done = CliRunner().invoke(build_app(), ["look", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        assert is_user_error(done.exception), done.exception
        return 2, done.stdout, str(done.exception)
    return done.exit_code, done.stdout, ""


@pytest.mark.parametrize("family", FAMILIES)
def test_all_formats_draw_every_family(family: str) -> None:
    case = made(family)
    looks, data = looks_of(case.subject(), 2)
    text = terminal.render(looks, data, family, color=False, width=100)
    assert "▣ <image>×4" in text and "a small red cat" in text
    assert text.count("⟦") == text.count("⟧") == 4  # three answers, and the legend
    assert "\x1b[" not in text and max(map(len, text.splitlines())) <= 100
    coloured = terminal.render(looks, data, family, color=True, width=100)
    assert "\x1b[" in coloured and "▀" in coloured
    html = page.render(looks, data, family)
    assert html.count("<mark>") == html.count("</mark>") == 4
    assert not re.search(r"(src|href)=['\"](?!data:)", html)
    values = json.loads(document.render(looks, data, family))
    assert values["command"] == "look" and len(values["samples"]) == 2
    assert values["shares"]["image"] == {"tokens": 8, "supervised": 0}
    assert values["shares"]["assistant"]["supervised"] == values["shares"]["assistant"]["tokens"]
    assert values["findings"] == []
    tokens = [t for turn in values["samples"][0]["turns"] for t in turn["tokens"]]
    assert [t["id"] for t in tokens for _ in range(t["count"])] == list(looks[0].row.ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_turns_are_in_the_order_of_the_conversation(family: str) -> None:
    looks, _ = looks_of(made(family).subject(), 1)
    assert [turn.speaker for turn in looks[0].turns] == ["user", "assistant", "user", "assistant"]
    for turn in looks[0].turns:
        assert {t.role for t in turn.tokens} <= {turn.speaker, "marker", "image", "stop", "padding"}


def test_the_images_are_those_of_the_data() -> None:
    case = made("llava")
    looks, _ = looks_of(case.subject(), 2)
    wanted = ((case.batch["pixel_values"] / 2 + 0.5) * 255).round().to(torch.uint8)
    for look_, image in zip(looks, wanted, strict=True):
        assert look_.images[0].tobytes() == image.permute(1, 2, 0).contiguous().numpy().tobytes()
    case.processor = None
    looks, _ = looks_of(case.subject(), 1)
    assert "no processor was given" in looks[0].notes[0]


def test_what_is_wrong_stands_below() -> None:
    case = made("qwen2_vl")
    case.batch["labels"][case.batch["labels"] == case.tokenizer.eos_token_id] = IGNORED
    looks, data = looks_of(case.subject(), 2)
    text = terminal.render(looks, data, "x", color=False, width=100)
    assert "never supervised: the model does not learn to stop" in text
    assert "stop-token-not-supervised" in text
    assert "class='finding warning'" in page.render(looks, data, "x")


def test_nothing_of_a_text_becomes_markup() -> None:
    case = made("qwen2_vl", turns=(("<script>alert(1)</script> [bold]", "a & b"),))
    looks, data = looks_of(case.subject(), 1)
    html = page.render(looks, data, "<img src=x onerror=alert(1)>")
    assert "<script" not in html and "<img src=x" not in html
    assert "[bold]" in terminal.render(looks, data, "x", color=False, width=100).replace("\n", "")


def test_letters_of_several_tokens_stay_whole() -> None:
    case = made("qwen2_vl", turns=(("naïve 图 🙂?", "ok"),))
    looks, data = looks_of(case.subject(), 1)
    assert "naïve 图 🙂?" in terminal.render(looks, data, "x", color=False, width=120)


def test_long_stretches_are_shortened_and_answers_are_not() -> None:
    case = made("qwen2_vl", turns=(("why " * 400, "because " * 200),))
    looks, data = looks_of(case.subject(), 1)
    text = terminal.render(looks, data, "x", color=False, width=100).replace("\n", "").replace(" ", "")
    assert text.count("because") == 200 and text.count("why") < 200 and "tokens…" in text


def test_without_labels_or_tokenizer() -> None:
    batch = {"input_ids": torch.arange(5, 13)[None]}
    looks, data = looks_of(Subject(torch.nn.Linear(1, 1), batch=batch), 1)
    text = terminal.render(looks, data, "x", color=False, width=100)
    assert "no labels" in text and "no tokenizer was given" in text


class TestCommand:
    def test_minivlm_is_the_default(self) -> None:
        status, output, _ = look("--samples", "6")
        assert status == 0
        assert "row 3 of the batch" in output and "minivlm: 6 samples" in output
        assert "the stop token '<|im_end|>' (2) is supervised 6 of 6 times" in output

    def test_a_page(self, tmp_path) -> None:
        status, output, _ = look("--output-format", "html", "--output-file", str(tmp_path / "look.html"))
        assert (status, output) == (0, "")
        text = (tmp_path / "look.html").read_text(encoding="utf-8")
        assert text.startswith("<!doctype html>") and "data:image/png;base64," in text

    def test_a_factory(self, tmp_path) -> None:
        (tmp_path / "mine.py").write_text(
            "import torch, vlmdoctor\nprint('noise')\n"
            "def build():\n"
            "    ids = torch.arange(3, 9)[None]\n"
            "    return vlmdoctor.Subject(torch.nn.Linear(1, 1), batch={'input_ids': ids, 'labels': ids})\n"
            "def empty():\n    return torch.nn.Linear(1, 1)\n"
        )
        status, output, _ = look(f"{tmp_path}/mine.py:build", "--output-format", "json")
        values = json.loads(output)
        assert status == 0 and values["samples"][0]["shares"]["other"] == {"tokens": 6, "supervised": 5}
        status, _, sentence = look(f"{tmp_path}/mine.py:empty")
        assert status == 2 and "the target gives no batch" in sentence

    def test_a_folder_with_a_tokenizer(self, tmp_path) -> None:
        tokenizer("qwen2_vl").save_pretrained(tmp_path)
        status, output, _ = look(str(tmp_path))
        assert status == 0
        assert "What is in the picture?" in output and STOPS["qwen2_vl"] in output

    def test_a_folder_of_minivlm(self, tmp_path) -> None:
        import minivlm

        model, processor = minivlm.build("tiny", seed=0)
        model.config.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        status, output, _ = look(str(tmp_path))
        assert status == 0 and "⟦A slow change from dark to light.<|im_end|>⟧" in output

    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            ({}, "has no tokenizer files"),
            ({"tokenizer.json": "{"}, "can't be loaded"),
            ({"config.json": "{}"}, "has no tokenizer files"),
        ],
    )
    def test_folders_that_can_not_be_read(self, tmp_path, content: dict[str, str], sentence: str) -> None:
        for name, text in content.items():
            (tmp_path / name).write_text(text)
        status, _, told = look(str(tmp_path))
        assert status == 2 and sentence in told and len(told.splitlines()) == 1

    def test_a_format_that_there_is_not(self) -> None:
        status, _, told = look("--output-format", "xml")
        assert status == 2 and "choose one of full, json, html" in told
