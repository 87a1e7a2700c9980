"""Chat templates and tokenizers of a folder: endless, doubling, recursive, raising, reaching for more."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

from benchmarks.hostile.harness.bases import MODEL, TEMPLATE, TEXT_MODEL
from benchmarks.hostile.harness.mutate import dumped, spoiled_lines, spoiled_text, value
from benchmarks.hostile.harness.texts import TEXTS, text, utf8
from benchmarks.hostile.harness.trial import Base, Content, Edit, Fifo, Link, Sparse, Trial, numbered

NAME = "templates"

_DOUBLING = (
    "{{% set ns = namespace(x='ab') %}}{{% for i in range({}) %}}{{% set ns.x = ns.x ~ ns.x %}}{{% endfor %}}"
    "{{{{ ns.x }}}}"
)
_ENDLESS = (
    "{% for i in range(10**12) %}{% endfor %}",
    "{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3,
    "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(x) %}{{ m(x + x) }}{% endmacro %}{{ m('a') }}",
    "{% macro a() %}{{ b() }}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{{ a() }}{% endmacro %}{{ a() }}",
    "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "{{ 9 ** 9 ** 9 ** 9 }}",
    "{{ 10 ** 100000000 }}",
    "{{ (10 ** 100000)|string|length ** 100000 }}",
    "{{ 1 << 10 ** 10 }}",
    "{{ ('a' * 100000)|list|batch(1)|list|string|length }}",
    "{{ ('a ' * 1000000)|wordwrap(1) }}",
    "{{ ('<' * 200000)|striptags }}",
    "{{ ('a@' * 100000)|urlize }}",
    "{{ ('<a' * 100000)|striptags|length }}",
    "{% set ns = namespace(n=[]) %}{% for i in range(99999) %}{% set ns.n = ns.n + [ns.n] %}{% endfor %}",
)
_LARGE = (
    _DOUBLING.format(99),
    _DOUBLING.format(26),
    "{{ 'a' * 10 ** 10 }}",
    "{{ 'a ' * 10 ** 8 }}",
    "{{ '<image>' * 10 ** 6 }}",
    "{{ ['a'] * 10 ** 10 }}",
    "{{ 'a'.center(10 ** 10) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ '%*d'|format(999999999, 1) }}",
    "{{ messages|tojson(indent=999999999) }}",
    "{{ messages|string|replace('', 'a' * 100000) }}",
    "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "{{ 'a'.ljust(999999999) }}",
    "{{ 'a'|indent(999999999, true) }}",
    "{{ '\\t'.expandtabs(999999999) }}",
    "{{ ','.join(['a' * 1000000] * 10000) }}",
    "{{ messages|slice(999999999)|list }}",
    "{{ messages|batch(999999999, 'x')|list }}",
    "{{ lipsum(100000) }}",
    "{{ dict(a='a' * 10 ** 9) }}",
)
_REACHING = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ cycler.__init__.__globals__.os.system('touch EXECUTED') }}",
    "{{ lipsum.__globals__['os'].popen('touch EXECUTED').read() }}",
    "{{ self.__init__.__globals__.__builtins__.open('EXECUTED', 'w') }}",
    "{{ namespace.__init__.__globals__.os.system('touch EXECUTED') }}",
    "{{ raise_exception.__globals__['__builtins__']['open']('EXECUTED', 'w') }}",
    "{{ strftime_now.__globals__['os'].system('touch EXECUTED') }}",
    "{{ messages.__class__.__base__.__subclasses__() }}",
    "{{ (messages|attr('__class__'))|attr('__mro__') }}",
    "{{ '%s'.__mod__(messages).__class__ }}",
    "{{ '{0.__class__.__mro__}'.format(messages) }}",
    "{{ ''|attr('format_map')(dict) }}",
    "{{ messages|map('attr', '__class__')|list }}",
    "{{ messages|map(attribute='__class__.__init__')|list }}",
    "{{ config }}{{ request }}{{ g }}",
    "{% include '/etc/passwd' %}",
    "{% include 'config.json' %}",
    "{% import 'os' as os %}{{ os.system('touch EXECUTED') }}",
    "{% from 'os' import system %}",
    "{% extends 'base.html' %}",
    "{{ messages.clear() }}{{ messages.append({'role': 'x'}) }}",
    "{% do messages.pop() %}",
    "{{ messages[0].update({'role': 'x'}) }}",
    "{{ messages[0].content.append(messages) }}{{ messages }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ get_flashed_messages }}",
    "{% debug %}",
    "{{ ().__reduce__() }}",
    "{{ messages.__reduce_ex__(2) }}",
    "{{ (lambda: 1)() }}",
    "{{ func.__code__ }}",
    "{% set x = messages.__iter__ %}{{ x.__self__ }}",
)
_RAISING = (
    "{{ raise_exception('FOREIGN') }}",
    "{{ raise_exception(messages) }}",
    "{{ raise_exception(none) }}",
    "{{ raise_exception('a' * 1000000) }}",
    "{{ undefined.x.y }}",
    "{{ 1 / 0 }}",
    "{{ messages[99]['x'] }}",
    "{{ messages['x'] + 1 }}",
    "{{ strftime_now(5) }}",
    "{{ strftime_now('%Y' * 100000) }}",
    "{{ strftime_now('\\ud800') }}",
    "{{ messages|tojson|from_json }}",
    "{{ messages|nothing }}",
    "{% nothing %}",
    "{% for %}",
    "{{ ",
    "{% if true %}",
    "{{ '\\x1b[2J' }}",
    "{{ [][0] }}",
    "{% break %}",
    "{% continue %}",
    "{% generation %}{% endgeneration %}",
    "{% generation %}FOREIGN",
    "{% set messages = 5 %}{{ messages.x() }}",
    "{% call x() %}{% endcall %}",
    "{% filter upper %}FOREIGN{% endfilter %}",
    "{% raw %}FOREIGN",
    "{{ x() }}",
    "{{ true + 'FOREIGN' }}",
    "{{ messages|sort }}",
    "{{ messages|sum }}",
    "{{ messages|xmlattr }}",
)
_PLAIN = (
    "FOREIGN",
    "",
    "{{ messages }}",
    "{{ bos_token }}FOREIGN{{ eos_token }}",
    "{% for m in messages %}FOREIGN{{ m.role }}: {{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ m.content[0].text }}FOREIGN<image>{% endfor %}",
    "{% for m in messages %}<image><image><image>FOREIGN{% endfor %}",
    "{{ add_generation_prompt }}{{ tools }}{{ documents }}FOREIGN",
    "{# FOREIGN #}",
    TEMPLATE + "FOREIGN",
    TEMPLATE.replace("user", "FOREIGN"),
    TEMPLATE.replace("<image>", "FOREIGN<image>"),
    TEMPLATE.replace("{{ m['role'] }}", "{{ m['role'] }}FOREIGN"),
)
_KINDS = (_ENDLESS, _LARGE, _REACHING, _RAISING, _PLAIN)


def inputs(seed: int, count: int) -> Iterator[Trial]:
    """Templates and tokenizers from a seed."""
    return numbered(NAME, _one, seed, count)


def _one(rng: random.Random, index: int) -> Trial:
    base = rng.choice((MODEL, TEXT_MODEL))
    files: dict[str, Content] = {"in/model": Base(base)}
    if rng.random() < 0.75:
        template, what = _template(rng), "a chat template"
        if rng.random() < 0.7:
            files["in/model/chat_template.jinja"] = template
        else:
            files |= _other_places(rng, template)
    else:
        files |= _tokenizer(rng)
        what = "a tokenizer"
    argv = rng.choice(
        (
            ("look", "model"),
            ("look", "model", "--output-format", rng.choice(("json", "html"))),
            ("check", "model", "--depth", "static"),
            (
                "check",
                "model",
                "--depth",
                "static",
                "--output-format",
                rng.choice(("json", "html", "github", "junit")),
            ),
            ("check", "model", "--depth", "forward", "--budget", "2"),
        )
    )
    return Trial(f"{what} of the {base}", argv, files, env={"GITHUB_ACTIONS": "true"})


def _template(rng: random.Random) -> bytes:
    made = rng.choice(rng.choice(_KINDS)).replace("FOREIGN", text(rng))
    match rng.randrange(10):
        case 0:
            return utf8(TEMPLATE + made)
        case 1:
            return spoiled_lines(rng, utf8(TEMPLATE))
        case 2:
            return spoiled_text(rng, utf8(TEMPLATE))
        case 3:
            depth = rng.choice((50, 500, 20_000))
            return utf8(
                rng.choice(
                    (
                        "{% if 1 %}" * depth + made + "{% endif %}" * depth,
                        "{{ " + "(" * depth + "1" + ")" * depth + " }}",
                        "{{ " + "[" * depth + "]" * depth + " }}",
                        "{{ " + "not " * depth + "1 }}",
                        "{{ 1" + "|string" * depth + " }}",
                        "{{ messages" + ".x" * depth + " }}",
                        "{% for a in messages %}" * depth + "{% endfor %}" * depth,
                        made * min(depth, 2000),
                    )
                )
            )
        case _:
            return utf8(made)


def _other_places(rng: random.Random, template: bytes) -> dict[str, Content]:
    """The other files that can hold a template, and files that are no plain ones."""
    written = template.decode("utf-8", "replace")
    form = rng.choice(
        (
            written,
            {"default": written},
            [{"name": "default", "template": written}],
            [{"name": text(rng), "template": written}, {"name": "default"}],
            value(rng),
        )
    )
    return rng.choice(
        (
            {"in/model/chat_template.json": dumped(rng, {"chat_template": form})},
            {"in/model/processor_config.json": dumped(rng, {"chat_template": form})},
            {
                "in/model/tokenizer_config.json": dumped(
                    rng, {"chat_template": form, "tokenizer_class": "PreTrainedTokenizerFast"}
                )
            },
            {"in/model/additional_chat_templates/default.jinja": template},
            {"in/model/chat_template.jinja": Fifo()},
            {"in/model/chat_template.jinja": Link("/dev/zero")},
            {"in/model/chat_template.jinja": Link("chat_template.jinja")},
            {"in/model/chat_template.jinja": Sparse(rng.choice((10**8, 1 << 34)), template)},
        )
    )


def _tokenizer(rng: random.Random) -> dict[str, Content]:
    name = rng.choice(
        ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "special_tokens_map.json")
    )
    match rng.randrange(6):
        case 0:
            return {
                f"in/model/{name}": rng.choice(
                    (Fifo(), Link("/dev/zero"), Link(name), Sparse(1 << 34), b"", None)
                )
            }
        case 1:
            # A tokenizer that makes a hundred thousand words of each letter.
            grown = {
                "type": "Replace",
                "pattern": {"Regex": "."},
                "content": rng.choice(("a" * 100_000, rng.choice(TEXTS))),
            }
            return {"in/model/tokenizer.json": _with_normalizer(grown)}
        case 2:
            slow = {
                "type": "Replace",
                "pattern": {"Regex": rng.choice(("(a+)+$", "(.*)*x", "((a?)*)*b", "("))},
                "content": "",
            }
            return {"in/model/tokenizer.json": _with_normalizer(slow)}
        case 3:
            return {
                "in/model/special_tokens_map.json": dumped(
                    rng, {"eos_token": text(rng), "pad_token": value(rng)}
                )
            }
        case _ if name in ("special_tokens_map.json",):
            return {f"in/model/{name}": dumped(rng, value(rng))}
        case 4 if name != "processor_config.json":
            return {f"in/model/{name}": Edit("bytes", rng.randrange(2**32))}
        case _:
            return {"in/model/tokenizer_config.json": Edit("json", rng.randrange(2**32))}


def _with_normalizer(normalizer: dict[str, object]) -> bytes:
    words = {word: number for number, word in enumerate(["<unk>", "<s>", "<pad>", "<image>", "a", "b"])}
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [
                {
                    "id": 3,
                    "content": "<image>",
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
            ],
            "normalizer": normalizer,
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
            "model": {"type": "BPE", "vocab": words, "merges": [], "unk_token": "<unk>"},
        }
    ).encode("utf-8", "surrogatepass")
