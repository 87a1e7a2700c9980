"""Foreign text is plain wherever it comes out: in every format, page and line."""

from __future__ import annotations

import io
import json
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hostile_texts import TEXTS, assert_plain
from hypothesis import given
from hypothesis import strategies as st

from vlmdoctor import reporters, streams
from vlmdoctor.errors import NotBuilt, UserError
from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Proof, Severity
from vlmdoctor.live.display import PlainLines
from vlmdoctor.live.state import LiveState
from vlmdoctor.live.view import draw
from vlmdoctor.plain_text import (
    BLOCK,
    LINE,
    described,
    first_line,
    plain_line,
    plain_lines,
    plain_values,
    raised,
    without_commands,
)
from vlmdoctor.probes.source.scan import scan
from vlmdoctor.report import Report
from vlmdoctor.reporters.card import card_lines
from vlmdoctor.reporters.machine import device_sections, source_section, static_sections

FORMATS = reporters.names()


def hostile_report(text: str) -> Report:
    """A report with a text wherever one can come from outside."""
    finding = Finding(
        message=text,
        severity=Severity.ERROR,
        at=(text, "a"),
        file=text or None,
        line=1,
        measured={text: text, "deep": {text: [text, (text, {text})]}},
        threshold={"limit": text},
        cause=text,
        proof=Proof(text, text, text),
        fix=Fix(text, (text, "a\nb")),
        links=(text, "https://example.com/a", "javascript:x()"),
        symptoms=(text,),
        rule="some-rule",
        code="GRAD999",
    )
    return Report(
        command="check",
        target=text,
        findings=(finding,),
        ran=("some-rule", text),
        skipped=(("other-rule", text),),
        crashed=(("third-rule", text),),
        facts={"not_built": text, text: [text], "batch": text, "weights": text},
    )


class Page(HTMLParser):
    """The tags, attributes and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.links += [value for name, value in attributes if name in ("href", "src", "srcset")]


def assert_harmless_page(text: str) -> None:
    page = Page(text)
    assert not page.tags & {"script", "iframe", "base", "object", "svg", "link", "a"}
    assert not any(name.startswith("on") for name in page.attributes)
    assert all(link.startswith("data:image/") for link in page.links)


@pytest.mark.parametrize("name", FORMATS)
def test_a_hostile_text_is_plain_in_every_format(name: str) -> None:
    for text in TEXTS:
        report = hostile_report(text)
        out = reporters.reporter(name).render(report, color=False, verbose=True, quiet=False, width=50)
        assert_plain(out, commands=name != "github")
        if name == "json":
            values = json.loads(out)
            assert values["findings"][0]["message"] == plain_line(text)
            assert values["target"] == plain_line(text)
        elif name == "sarif":
            (run,) = json.loads(out)["runs"]
            assert run["results"][0]["message"]["text"].startswith(plain_line(text))
            assert run["tool"]["driver"]["rules"][0].get("helpUri", "https://").startswith("http")
        elif name == "junit":
            root = ElementTree.fromstring(out.encode("utf-8"))
            assert root[0].find("testcase/failure").get("message") == plain_line(text)
        elif name == "html":
            assert_harmless_page(out)
        elif name == "github":
            lines = out.splitlines()
            assert [line.split(" ")[0] for line in lines[:2]] == ["::error", "::error"]
            assert len(lines) == 3 and not lines[2].lstrip().startswith("::") and "##[" not in lines[2]
        elif name == "markdown":
            assert_harmless_markdown(out)


def assert_harmless_markdown(out: str) -> None:
    """Outside of code: no HTML but line breaks, no link or image, and tables of two columns."""
    fenced = False
    for line in out.splitlines():
        if re.match(r"`{3,}", line):
            fenced = not fenced
            continue
        if fenced:
            continue
        text = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", line)
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3, line
        bare = re.sub(r"\\.", "", text)
        assert not re.search(r"<(?!br>)", bare), line
        assert "](" not in bare and "![" not in bare, line


@given(st.text())
def test_any_text_becomes_plain_and_stays_so(text: str) -> None:
    line, block = plain_line(text), plain_lines(text)
    assert_plain(re.sub("[\u200c\u200d]", "", line), lines=False, commands=False)
    assert_plain(re.sub("[\u200c\u200d]", "", block), commands=False)
    assert plain_line(line) == line and plain_lines(block) == block
    assert plain_line(text, 20) == plain_line(plain_line(text, 20), 20) and len(plain_line(text, 20)) <= 20
    broken = without_commands(block)
    assert_plain(re.sub("[\u200c\u200d]", "", broken))
    assert broken.replace(" ", "") == block.replace(" ", "")


def test_what_is_no_threat_is_kept() -> None:
    for text in (
        "at::Tensor",
        "é✓…",
        "日本語",
        "\u0645\u200c\u062e",
        "\U0001f468\u200d\U0001f469",
        "❤️",
        "a\u3000b",
    ):
        assert plain_line(text) == text
        assert without_commands(f"in {text}") == f"in {text}"
    assert plain_lines("a\n\tb\r\nc") == "a\n\tb\nc"
    assert plain_line("a\n\tb\x1b\x9b\u202e\ud800") == "a\\n\\tb\\x1b\\x9b\\u202e\\ud800"
    assert len(plain_line("x" * 10**6)) == LINE and plain_line("x" * 10**6).endswith("…")
    assert len(plain_lines("\x1b" * 10**6)) == BLOCK


def test_values_stay_the_same_objects_where_nothing_changes() -> None:
    values = {"a": [1, 2.0, None, ("b", True)], "c": {"d": "e"}}
    assert plain_values(values) is values
    assert plain_values({"a": ["\x1b"], "b": ("\x1b",)}) == {"a": ["\\x1b"], "b": ("\\x1b",)}
    assert plain_values(10**5000) == "an integer of 16610 bits"
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    assert "…" in str(plain_values(nested))
    report = Report("check", "x", ran=("a",), facts={"n": 10**5000, "o": object()})
    for name in FORMATS:
        reporters.reporter(name).render(report, color=False, verbose=True, quiet=False, width=80)


@pytest.mark.parametrize("kind", [UserError, lambda text: NotBuilt(text, text)])
def test_an_error_is_one_plain_line(kind) -> None:
    for text in TEXTS:
        assert_plain(str(kind(f"can't read {text}.")), lines=False, commands=False)


class Silent(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class NoText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class Ends(BaseException):
    def __str__(self) -> str:
        raise SystemExit(3)


@pytest.mark.parametrize("error", [Silent(), NoText(), Ends(), ValueError(), ValueError("\x1b\nsecond")])
def test_every_exception_can_be_described(error: BaseException) -> None:
    for text in (described(error), first_line(error), raised(error)):
        assert text
        assert_plain(text)
    assert raised(ValueError("a.\nb")) == "ValueError: a" and raised(ValueError()) == "ValueError"


def test_the_streams_of_a_runner_carry_out_no_foreign_command(monkeypatch) -> None:
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    for parts in (
        ("::error::a\n",),
        (":", ":error::a"),
        ("a\n", "  ", ":", ":x"),
        ("a\r", "::x"),
        ("#", "#[x]"),
        ("##", "[x]"),
        ("##vs", "o[x]"),
        *((text, "\n", text) for text in TEXTS),
    ):
        for name in ("stdout", "stderr"):
            out = io.StringIO()
            monkeypatch.setattr(sys, name, out)
            streams.prepare()
            for part in parts:
                getattr(sys, name).write(part)
            assert not re.search(r"(?:\A|[\r\n])\s*::|##\w*\[", out.getvalue()), parts
            assert out.getvalue().replace(" ", "") == "".join(parts).replace(" ", "")
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    streams.prepare()
    streams.write_report("::error::ours\n", commands=True)
    print("::error::theirs")
    assert out.getvalue() == "::error::ours\n: :error::theirs\n"


def test_the_sections_of_the_machine_are_plain(tmp_path) -> None:
    for text in TEXTS:
        environment = Environment(
            python=text,
            platform=text,
            kernel=text,
            container=text,
            variables={"CUDA_VISIBLE_DEVICES": text, text: text},
            packages={"numpy": text, text: text},
            unseen={"host": text},
        )
        for section in (*static_sections(environment), *device_sections(environment)):
            for line in (section.line, *section.details):
                assert_plain(line, lines=False, commands=False)
    (tmp_path / "a\x1b[31m\n::x.py").write_text(
        "import os\nos.environ['CUDA_VISIBLE_DEVICES'] = '\x1b[31m'\n("
    )
    (tmp_path / "b\x1b.py").write_text("import os\nos.environ['CUDA_VISIBLE_DEVICES'] = '\x1b[31m'  # \x9b\n")
    source = scan([tmp_path])
    for line in (source_section(source).line, *source_section(source).details, source.settings[0].code):
        assert_plain(line, lines=False, commands=False)


def test_the_lines_and_the_view_of_a_run_are_plain() -> None:
    for text in TEXTS:
        stream = io.StringIO()
        state = LiveState()
        state.title, state.place, state.phase = text, text, "training"
        finding = Finding(text, Severity.WARNING, rule="some-rule", code="GRAD999")
        state.arose(finding)
        lines = PlainLines(state, stream)
        lines.begin()
        lines.noticed(finding)
        lines.say(text and f"so: {text}")
        # That no line is a command is for the stream to see to.
        assert_plain(stream.getvalue(), commands=False)
        for line in card_lines(finding):
            assert_plain(line, lines=False, commands=False)
        assert_plain(draw(state, 80).plain, commands=False)


def test_what_the_model_is_given_is_drawn_plain() -> None:
    from conversations import made

    from vlmdoctor.look import document, page, terminal
    from vlmdoctor.look.samples import Look, Token, Turn, looks_of

    (look,), data = looks_of(made("llava").subject(), 1)
    looks = []
    for text in TEXTS:
        tokens = tuple(Token(7, text, role, False, 2) for role in ("image", "padding", "user"))
        looks.append(Look(replace(look.row, name=text), (Turn("user", tokens),), notes=(text,)))
    for text in TEXTS[::40]:
        unknown = replace(data, roles_unknown=text)
        assert_plain(terminal.render(looks, unknown, text, color=False, width=60))
        drawn = page.render(looks, unknown, text)
        assert_plain(drawn)
        assert_harmless_page(drawn)
        values = document.render(looks, unknown, text)
        assert_plain(values)
        assert json.loads(values)["target"] == plain_lines(text)


def test_the_page_of_a_run_is_plain(tmp_path) -> None:
    from recorded_runs import write_run

    from vlmdoctor.runs.columns import read_recording
    from vlmdoctor.runs.page import page
    from vlmdoctor.runs.verdict import LearningSummary

    recording = read_recording(write_run(tmp_path / "run", steps=20, eval_every=10))
    for text in TEXTS:
        info = {"target": text, "command": [text, text], "created": text}
        summary = {f"accuracy/{text}": 0.5, "environment": {text: text}, "device": text, "seconds": 1.0}
        hostile = replace(recording, info={**info, "config": {text: text, "data": text}}, summary=summary)
        drawn = page(hostile, hostile_report(text), LearningSummary(text, (text,), None), {})
        assert_plain(drawn)
        assert_harmless_page(drawn)


def test_the_trainer_says_what_is_plain() -> None:
    from minivlm.callbacks import ConsoleCallback
    from minivlm.errors import UserError as TrainerError

    for text in TEXTS:
        assert_plain(str(TrainerError(f"can't use {text}")), commands=False)
    assert str(TrainerError("two rows:\n\ta\x1b\u202e\ud800")) == "two rows:\n\ta\\x1b\\u202e\\ud800"
    stream = io.StringIO()
    ConsoleCallback(stream=stream)._say("saved a\x1b[31m")
    assert stream.getvalue() == "saved a\\x1b[31m\n"


@pytest.mark.parametrize("value", ["abc", "-1", "1.5", "9" * 5000, "\x1b", "0x1"])
def test_a_rank_that_is_no_number_is_one_sentence(monkeypatch, value) -> None:
    from minivlm.distributed import joined
    from minivlm.errors import UserError as TrainerError
    from vlmdoctor.boundary import whole_number

    monkeypatch.setenv("RANK", value)
    with pytest.raises(UserError, match="RANK is set to '"):
        whole_number("RANK")
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, value)
        with pytest.raises(TrainerError, match=f"{name} is set to '"), joined("cpu"):
            pass
        monkeypatch.delenv(name)
