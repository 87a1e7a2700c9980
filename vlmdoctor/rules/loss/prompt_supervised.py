"""prompt-supervised: the prompt is among the supervised tokens."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.data import Data, count
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import healthy_data, sample_data

NEARLY_ALL = 0.9
FEWEST = 8  # tokens of users' words


@rule("prompt-supervised", "LOSS306")
def prompt_supervised(data: Data) -> Iterator[Finding]:
    """Prompt not masked in labels: the user's words are supervised.

    ## Why it matters
    The loss is then mostly about questions, which repeat, and little about answers, which matter. A mask that
    covers only padding and images leaves the questions supervised ([VLM-R1
    123](https://github.com/om-ai-lab/VLM-R1/issues/123), [TRL
    1880](https://github.com/huggingface/trl/issues/1880)).

    ## Confidence and false positives
    The speakers are identified by the chat template's own markers, and 90% of the users' tokens have labels.
    Whether that is intended is not known: the rule assumes fine-tuning on conversations, where prompts are
    mostly masked. Some recipes train on prompts on purpose, and so does pretraining: ignore this rule then.

    ## What to do
    Mask everything but the answers and the stop token after each.
    """
    rows = data.needing_roles()
    asked, learned = count(rows, "user"), count(rows, "user", supervised=True)
    answers = count(rows, "assistant", supervised=True)
    if asked < FEWEST or learned < NEARLY_ALL * asked or not answers:
        return
    total = sum(sum(row.seen) for row in rows)
    yield Finding(
        f"the prompt is not masked: {learned / total:.0%} of supervised tokens are the user's words",
        Severity.WARNING,
        at=("labels", *(row.name for row in rows[:4])),
        measured={"labels": total, "of_users": learned, "of_answers": answers, "rows": len(rows)},
        threshold={"of_users": 0},
        cause="the labels of the user's turns are not masked; assumed: they should be",
        fix=Fix(
            "mask the prompts, for instance with the template's assistant mask",
            ("tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)",),
        ),
    )


@prompt_supervised.bad
def only_images_masked() -> Data:
    return sample_data("MiiiiUUUUUMAAASMpp", "MiiiiUUUUMAASMpppp")


@prompt_supervised.good
def answers_only() -> Data:
    return healthy_data()


@prompt_supervised.good
def captions_for_pretraining() -> Data:
    return sample_data("iiiiOOOOOOSppppp", "iiiiOOOOSppppppp", "muuuuuuuuuuuumAS")
