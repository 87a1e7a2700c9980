"""What is healthy, for the rules' examples: a model's parameters, a run in which it learns, a batch.

An example changes what its fault would change, so that it says in a few lines what the fault looks like.

Rows are written as one letter for each token: `m` marker, `y` system, `u` user, `a` assistant, `s` stop,
`i` image, `p` padding, `o` other. A capital letter is a token whose label is its own id; the others' labels
are masked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

from vlmdoctor.evidence.data import Data, Picture, Row, Words
from vlmdoctor.evidence.parameters import Parameter, Parameters
from vlmdoctor.evidence.steps import Step, Steps, Track
from vlmdoctor.knowledge.labels import IGNORE_INDEX
from vlmdoctor.knowledge.parameter_names import layer_of, role_of

VOCABULARY = 680
SHAPES = {
    "model.vision_encoder.patch_embed.weight": (64, 48),
    **{
        f"model.vision_encoder.layers.{i}.{part}.weight": (64, 64)
        for i in range(4)
        for part in ("attention", "mlp")
    },
    "model.vision_proj.weight": (320, 64),
    "model.vision_proj.bias": (320,),
    "model.lm.embed_tokens.weight": (VOCABULARY, 320),
    **{
        f"model.lm.layers.{i}.{part}.weight": (320, 320)
        for i in range(8)
        for part in ("self_attn.q_proj", "mlp.up_proj")
    },
    "lm_head.weight": (VOCABULARY, 320),
}


def sample_parameters(change: Callable[[Parameter], dict[str, Any]] | None = None) -> Parameters:
    """A small model's parameters, trainable and in the optimizer once, with `change` applied to each."""
    found = []
    for name, shape in SHAPES.items():
        layer, depth = layer_of(name)
        parameter = Parameter(
            name=name,
            role=role_of(name),
            layer=layer,
            depth=depth,
            shape=shape,
            dtype="float32",
            requires_grad=True,
            in_optimizer=1,
            lr=1e-3,
        )
        found.append(dataclasses.replace(parameter, **(change(parameter) if change else {})))
    return Parameters(parameters=tuple(found), vocab_size=VOCABULARY)


def frozen(*roles: str) -> Callable[[Parameter], dict[str, Any]]:
    """A change for `sample_parameters`: these roles don't require gradients."""
    return lambda parameter: {"requires_grad": parameter.role not in roles}


def sample_steps(
    count: int = 300,
    *,
    loss: Callable[[int], float] | None = None,
    track: Callable[[Track], dict[str, Any]] | None = None,
    every: int = 10,
    parameters: Parameters | None = None,
    **fields: Any,
) -> Steps:
    """A run that learns as it should: the loss falls from ln(vocabulary), every weight moves.

    Args:
        count: Optimizer steps; gradients are sampled at every tenth.
        loss: The loss of each step.
        track: What to change in each parameter's track.
        every: Sampling interval in steps.
        parameters: Whose run it is; frozen ones are not sampled.
        fields: Further fields of `Steps`.
    """
    parameters = parameters or sample_parameters()
    loss = loss or (
        lambda step: math.log(VOCABULARY) * (0.15 + 0.85 * math.exp(-step / 80)) + 0.05 * math.sin(step)
    )
    learning = [p for p in parameters.parameters if p.requires_grad]
    layers = dict.fromkeys(p.layer for p in learning if p.layer)
    roles = dict.fromkeys(p.role for p in learning)
    steps = []
    for step in range(count):
        lr = 1e-3 * min(1.0, step / 20)
        row = Step(step=step, loss=loss(step), lr=lr, supervised_tokens=96, images=64)
        if step % every == 0:
            row = dataclasses.replace(
                row,
                grad_norm=1.5 + math.sin(step),
                grad_norm_after=1.0,
                role_grad_norms=dict.fromkeys(roles, 0.7),
                layer_grad_norms={layer: 0.2 + 0.01 * i for i, layer in enumerate(layers)},
                role_update_ratios=dict.fromkeys(roles, 1e-3),
            )
        steps.append(row)
    samples = len(range(0, count, every))
    tracks = []
    for parameter in parameters.parameters:
        seen = samples if parameter.requires_grad else 0
        made = Track(
            name=parameter.name,
            samples=seen,
            with_gradient=seen,
            grad_norm=0.1 if seen else None,
            update_ratio=1e-3 if seen else None,
            moved=max(0, seen - 1),  # the warm-up's first step has the learning rate 0
            still=min(1, seen),
            changed_fraction=1.0 if seen else None,
        )
        tracks.append(dataclasses.replace(made, **(track(made) if track and seen else {})))
    known: dict[str, Any] = {"planned_steps": count, "finished": True, "resumed": False}
    return Steps(steps=tuple(steps), tracks=tuple(tracks), **(known | fields))


def without_gradient(*parts: str) -> Callable[[Track], dict[str, Any]]:
    """A change for `sample_steps`: parameters with one of these texts in their names never get a gradient."""

    def change(track: Track) -> dict[str, Any]:
        if not _in(track.name, parts):
            return {}
        return {"with_gradient": 0, "grad_norm": None, "moved": 0, "still": 0, "changed_fraction": None}

    return change


def without_movement(*parts: str) -> Callable[[Track], dict[str, Any]]:
    """A change for `sample_steps`: parameters with one of these texts in their names never move."""

    def change(track: Track) -> dict[str, Any]:
        if not _in(track.name, parts):
            return {}
        return {"moved": 0, "still": track.samples, "update_ratio": 0.0, "changed_fraction": 0.0}

    return change


def _in(name: str, parts: Iterable[str]) -> bool:
    return any(part in name for part in parts)


_ROLES = {
    "m": "marker",
    "y": "system",
    "u": "user",
    "a": "assistant",
    "s": "stop",
    "i": "image",
    "p": "padding",
    "o": "other",
}
PADDING, STOP, IMAGE = 0, 2, 3
WORDS = Words(
    embedding_rows=100,
    head_rows=100,
    tokenizer_size=100,
    placeholder="<image>",
    placeholder_ids=(IMAGE,),
    image_ids=(IMAGE,),
    padding_id=PADDING,
    stop_ids=(STOP,),
    eos_ids=(STOP,),
    max_positions=64,
    names=((PADDING, "<pad>"), (STOP, "</s>"), (IMAGE, "<image>")),
)


def sample_row(letters: str, number: int = 0, **changes: Any) -> Row:
    """The row that `letters` spell."""
    special = {"i": IMAGE, "p": PADDING, "s": STOP, "m": 1}
    ids = tuple(special.get(letter.lower(), 10 + i) for i, letter in enumerate(letters))
    row = Row(
        origin="batch",
        name=f"row {number} of the batch",
        ids=ids,
        roles=tuple(_ROLES[letter.lower()] for letter in letters),
        labels=tuple(i if letter.isupper() else IGNORE_INDEX for i, letter in zip(ids, letters, strict=True)),
        attended=tuple(letter.lower() != "p" for letter in letters),
        roles_known="a" in letters.lower(),
    )
    return dataclasses.replace(row, **changes)


def sample_data(*rows: str | Row, **changes: Any) -> Data:
    """A batch of rows, one image of each row's placeholders among them."""
    made = tuple(sample_row(row, i) if isinstance(row, str) else row for i, row in enumerate(rows))
    known = any(row.roles_known for row in made)
    data = Data(
        rows=made,
        words=WORDS,
        roles_unknown=None if known else "the tokenizer has no chat template",
        template_marks_answers=True,
        tokenizer_given=True,
    )
    return dataclasses.replace(data, **changes)


def healthy_data(**changes: Any) -> Data:
    """Questions about images, answers supervised with their stop tokens, one text-only row, right padding."""
    return sample_data("miiiiuuumAAASmpp", "miiiiuumAASmpppp", "muuuuumAAAAASmpp", **changes)


def words(**changes: Any) -> Words:
    """The examples' vocabulary with some changes."""
    return dataclasses.replace(WORDS, **changes)


def sample_picture(number: int = 0, **changes: Any) -> Picture:
    """A picture that was normalised as its processor says."""
    picture = Picture(
        name=f"image {number} of the batch",
        low=-1.8,
        high=2.1,
        restored_low=0.0,
        restored_high=1.0,
        fits=(("declared", 1.0), ("CLIP's", 1.0), ("0.5 and 0.5", 0.04), ("none, from 0 to 1", 0.03)),
    )
    return dataclasses.replace(picture, **changes)
