"""What a chat template puts around the words of each speaker, learned by rendering a made-up conversation."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vlmdoctor.errors import Unavailable
from vlmdoctor.sandbox.closed import the_same_twice

# Words that no template or vocabulary treats in a special way.
SYSTEM, FIRST, ANSWER, SECOND, LAST = "sysqword", "useqword", "ansqword", "usrqword", "lasqword"
GENERATION = re.compile(r"{%-?\s*generation\b")


@dataclass(frozen=True)
class Template:
    """The texts that tell the speakers apart.

    Attributes:
        user: What comes before the user's words; several forms where the first turn's is another.
        assistant: What comes before an answer.
        system: What comes before the system's words, where there is such a role.
        end: What ends an answer; "" where nothing of the template does.
    """

    user: tuple[str, ...]
    assistant: str
    system: str
    end: str


def source_of(tokenizer: Any, processor: Any) -> tuple[Any, str] | None:
    """The object whose `apply_chat_template` is used, and the template's text; None without a template."""
    for owner in (processor, tokenizer):
        template = getattr(owner, "chat_template", None)
        if isinstance(template, dict):
            template = template.get("default")
        if isinstance(template, str) and template and hasattr(owner, "apply_chat_template"):
            return owner, template
    return None


def learn(owner: Any) -> Template:
    """The template's markers; raises `Unavailable` where they can't be made out."""
    text = _rendered(owner, True) or _rendered(owner, False)
    if text is None:
        raise Unavailable("the chat template can't render a plain conversation")
    with_system = SYSTEM in text
    start = text.index(SYSTEM) + len(SYSTEM) if with_system else 0
    before_user = text[start : text.index(FIRST)]
    user_to_answer = _between(text, FIRST, ANSWER)
    answer_to_user = _between(text, ANSWER, SECOND)
    after_last = text[text.index(LAST) + len(LAST) :]
    end = _common_prefix(answer_to_user, after_last)
    assistant = _assistant_header(owner, text, user_to_answer, end)
    user = answer_to_user[len(end) :]
    first_user = _common_suffix(before_user, user) or before_user
    system = text[: text.index(SYSTEM)] if with_system else ""
    if not assistant.strip():
        raise Unavailable("the chat template puts nothing before an answer that would tell it apart")
    return Template(
        user=tuple(dict.fromkeys(marker.strip() for marker in (user, first_user) if marker.strip())),
        assistant=assistant.strip(),
        system=_without_bos(owner, system.strip()),
        end=end.strip(),
    )


def _rendered(owner: Any, with_system: bool) -> str | None:
    speakers = [("user", FIRST), ("assistant", ANSWER), ("user", SECOND), ("assistant", LAST)]
    if with_system:
        speakers = [("system", SYSTEM), *speakers]
    for as_parts in (False, True):
        text = _apply(owner, speakers, as_parts)
        words = [word for _, word in speakers]
        if text is not None and all(text.count(word) == 1 for word in words):
            return text
    return None


def _apply(owner: Any, speakers: Sequence[tuple[str, str]], as_parts: bool, **options: Any) -> str | None:
    messages = [
        {"role": role, "content": [{"type": "text", "text": word}] if as_parts else word}
        for role, word in speakers
    ]
    try:
        with the_same_twice():
            text = owner.apply_chat_template(messages, tokenize=False, **options)
    except Exception:  # templates raise what they like, to refuse a system message for instance
        return None
    return text if isinstance(text, str) else None


def _between(text: str, one: str, other: str) -> str:
    return text[text.index(one) + len(one) : text.index(other)]


def _assistant_header(owner: Any, text: str, user_to_answer: str, end: str) -> str:
    """What comes before an answer: what the template adds to ask for one, as far as texts have it."""
    for as_parts in (False, True):
        asked = _apply(owner, [("user", FIRST)], as_parts, add_generation_prompt=True)
        plain = _apply(owner, [("user", FIRST)], as_parts)
        if asked is not None and plain is not None and asked.startswith(plain) and FIRST in plain:
            prompt = asked[len(plain) :]
            while prompt.strip() and prompt not in user_to_answer:
                prompt = prompt[:-1]
            if prompt.strip():
                return prompt
    return user_to_answer[len(_common_prefix(user_to_answer, end)) :] or user_to_answer


def _without_bos(owner: Any, text: str) -> str:
    """`text` without the token that begins every sequence, if more than that token is left of it."""
    bos = getattr(getattr(owner, "tokenizer", owner), "bos_token", None) or ""
    return text.removeprefix(bos).strip() or text


def _common_prefix(one: str, other: str) -> str:
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return "".join(char for char, _ in same)


def _common_suffix(one: str, other: str) -> str:
    return _common_prefix(one[::-1], other[::-1])[::-1]
