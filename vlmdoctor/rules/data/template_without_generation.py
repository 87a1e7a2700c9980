"""template-without-generation: assistant_only_loss is on, and the template does not mark the answers."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.data import Data
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data


@rule("template-without-generation", "DATA305", explains=("nothing-supervised",))
def template_without_generation(data: Data) -> Iterator[Finding]:
    """Chat template without `{% generation %}`, although `assistant_only_loss` is on.

    ## Why it matters
    The mask of the answers comes from `{% generation %}` in the template. Without it the mask is all zeros,
    every label is masked, and the model is trained on nothing. The stock templates of Llama 3.1, Qwen3 and
    Gemma 3 have none ([marin 7237](https://github.com/marin-community/marin/issues/7237), [TRL
    4201](https://github.com/huggingface/trl/issues/4201)).

    ## Confidence and false positives
    Both are read: the training argument and the template's text. Newer versions of TRL use a template of
    their own for some models, so it is an error only where every label is masked, else a warning.

    ## What to do
    Wrap the answer and its stop token into `{% generation %}` and `{% endgeneration %}`.
    """
    if data.template_marks_answers is None:
        raise Unavailable("no chat template was given")
    if data.template_marks_answers or not data.assistant_only_loss:
        return
    empty = bool(data.labelled) and not any(any(row.seen) for row in data.labelled)
    if not empty and any(any(row.seen) for row in data.labelled):
        return
    yield Finding(
        "assistant_only_loss needs {% generation %}, and the chat template has none",
        Severity.ERROR if empty else Severity.WARNING,
        at=("tokenizer.chat_template",),
        measured={"rows": len(data.labelled), "labels": 0 if empty else None},
        cause="without it the mask of the answers is all zeros, so nothing is supervised",
        fix=Fix(
            "mark the answer in the template",
            ("{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}",),
        ),
    )


@template_without_generation.bad
def nothing_marked() -> Data:
    return healthy_data(template_marks_answers=False, assistant_only_loss=True, rows=())


@template_without_generation.good
def another_way_of_masking() -> Data:
    return healthy_data(template_marks_answers=False)
