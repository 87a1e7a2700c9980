"""no-gradient: parameters that should learn and never get a gradient."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.backward import Backward, Gradient
from vlmdoctor.evidence.made_batch import MadeBatch
from vlmdoctor.evidence.parameters import Parameter, Parameters
from vlmdoctor.evidence.reach import PATH, Reach, reach_in_backward, reach_in_shapes, reach_in_steps
from vlmdoctor.evidence.shapes import Shapes
from vlmdoctor.evidence.steps import Steps
from vlmdoctor.finding import Finding, Fix, Inferred, Severity
from vlmdoctor.knowledge.parameter_names import layer_of, role_of
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import sample_parameters, sample_steps, without_gradient
from vlmdoctor.rules.places import counted, listed, module_of, places, share_of

LARGE_SHARE = 0.01  # of the trainable numbers: below it, single unused parameters are for information
MOST_OF_A_PART = 0.5


@rule("no-gradient", "GRAD201", explains=("loss-not-falling", "image-ignored", "accuracy-below-gate"))
def no_gradient(
    parameters: Parameters,
    steps: Steps | None,
    backward: Backward | None,
    shapes: Shapes | None,
    made: MadeBatch | None,
) -> Iterator[Finding]:
    """No gradient reaches trainable parameters.

    ## Why it matters
    They keep their initial values, while the loss falls because of the others: a vision encoder under
    `torch.no_grad`, image features copied in through `.data`, gradient checkpointing after frozen embeddings.
    Nothing raises ([Qwen-VL 124](https://github.com/QwenLM/Qwen-VL/issues/124), [TinyLLaVA
    17](https://github.com/TinyLLaVA/TinyLLaVA_Factory/issues/17), [LLaVA
    305](https://github.com/haotian-liu/LLaVA/issues/305), [PyTorch
    7617](https://github.com/pytorch/pytorch/issues/7617)).

    ## Confidence and false positives
    That no gradient reached them, in the sampled steps or in a backward pass, is measured. Where the path is
    cut is known up to the parts before and after the cut. It is an error where a whole part (vision,
    projector, language, head) gets none. If vision and projector both get none and it is not known whether
    there were images, it is a warning, since batches of text alone look the same ([TRL
    6617](https://github.com/huggingface/trl/issues/6617)). Parameters that are unused by design are not
    reported: the last vision layers after the chosen feature layer ([TRL
    1936](https://github.com/huggingface/trl/issues/1936)), poolers, experts that no token was routed to,
    whole towers for audio or video, and LoRA's A as long as its B is still zero.

    ## What to do
    Look at the cut that the finding names. Run the tower with gradients; insert features into the text with
    `masked_scatter` or `torch.where`, not through `.data`; with gradient checkpointing use
    `use_reentrant=False` or call `model.enable_input_require_grads()`.
    """
    if steps is not None:
        reach = reach_in_steps(parameters, steps)
    elif backward is not None and backward.failure is None:
        reach = reach_in_backward(parameters, backward)
    elif shapes is not None and shapes.failure is None and shapes.loss:
        reach = reach_in_shapes(parameters, shapes)
    else:
        raise Unavailable("neither a training step nor a backward pass could be watched")
    if not reach.missing:
        return
    if not reach.reached:
        yield _finding("no parameter got a gradient", Severity.ERROR, reach.missing, reach, *_nothing(reach))
        return
    if whole := reach.whole_roles:
        yield _finding(
            f"no gradient reaches {listed(_called(role) for role in whole)}",
            Severity.WARNING if reach.perhaps_without_images else Severity.ERROR,
            [p for p in reach.missing if p.role in whole],
            reach,
            *_cut(reach),
        )
    elif strays := [p for p in reach.missing if not reach.unused_by_design(p)]:
        finding = _stray(strays, reach)
        # A synthetic batch need not use all the paths of a real one.
        minor = made is not None and finding.severity is Severity.WARNING
        yield dataclasses.replace(finding, severity=Severity.INFO) if minor else finding


def _called(role: str) -> str:
    return {"vision": "the vision encoder", "language": "the language model"}.get(role, f"the {role}")


def _stray(strays: Sequence[Parameter], reach: Reach) -> Finding:
    def share(role: str) -> float:
        return share_of((p for p in strays if p.role == role), (p for p in reach.seen if p.role == role))

    if (lost := reach.lost_routers) and set(lost) <= set(strays):
        return _finding(
            f"no gradient reaches the routers: {counted(len(lost), 'tensor')}, while the experts learn",
            Severity.WARNING,
            lost,
            reach,
            "the experts' outputs are not weighted by the router's probabilities, or these are detached, "
            "and no auxiliary loss depends on them: the routing stays as initialised",
            Fix("multiply each expert's output by the router's probability for it"),
        )
    mostly = [role for role in PATH if share(role) > MOST_OF_A_PART and not reach.comes_through(role)]
    if mostly:
        severity = Severity.ERROR
        message = f"no gradient reaches most of {listed(_called(role) for role in mostly)}"
        cause = (
            "other parameters of the same part got gradients, these did not; reentrant gradient "
            "checkpointing with inputs that need no gradient looks like this; so does a detach in between"
        )
        fix = Fix(
            "make the checkpointed blocks' inputs require gradients, or use use_reentrant=False",
            ("model.enable_input_require_grads()", 'gradient_checkpointing_kwargs={"use_reentrant": False}'),
        )
    else:
        severity = Severity.WARNING if share_of(strays, reach.seen) >= LARGE_SHARE else Severity.INFO
        message = (
            f"{counted(len(strays), 'trainable parameter')} of {len(reach.seen)} never "
            f"{'gets' if len(strays) == 1 else 'get'} a gradient"
        )
        cause = (
            "no gradient reached them, while others of the same part got one: the forward pass does not use "
            "them, or drops their output"
        )
        fix = Fix(
            "freeze them if that is intended (they cost optimizer memory, and DDP refuses them); otherwise "
            "use them"
        )
    return _finding(message, severity, strays, reach, cause, fix)


def _nothing(reach: Reach) -> tuple[str, Fix]:
    if any(reach.tracks[p.name].with_gradient for p in reach.missing):
        return (
            Inferred(
                "the gradients are exactly zero: the loss does not depend on any parameter (all labels "
                "masked, or multiplied by zero); which of these was not established"
            ),
            Fix("print the loss and the number of labels that are not -100 for one batch"),
        )
    return (
        "no parameter had a gradient when the optimizer stepped: backward() was not called on a loss of this "
        "model, or gradients were cleared between backward() and step()",
        Fix(
            "in each step call, in this order:",
            ("optimizer.zero_grad()", "loss.backward()", "optimizer.step()"),
        ),
    )


def _cut(reach: Reach) -> tuple[str, Fix]:
    last = reach.whole_roles[-1]
    behind = PATH[PATH.index(last) + 1 :]
    next_role = next((role for role in behind if any(p.role == role for p in reach.reached)), None)
    if reach.perhaps_without_images:
        known = reach.with_images is not None
        says = "the batches had no images" if known else "it is not known whether there were images"
        return (
            f"no gradient came back from the text to the image side; {says}, so either the batches are text "
            "only or the features are detached on their way into the text",
            Fix(
                "with text only, freeze the vision part; otherwise insert the features with gradients",
                ("x = x.masked_scatter(mask[..., None], features)  # and not through .data",),
            ),
        )
    if next_role is None:
        return (
            "other parts get gradients, this one does not: the loss does not pass through it",
            Fix("check that the forward pass uses it, with gradients"),
        )
    cause = Inferred(
        f"gradients reach {_called(next_role)} and stop before {_called(last)}: the path between them is "
        "cut (torch.no_grad, .detach(), .data, numpy, or stored features); which of "
        "these was not established"
    )
    if last == "vision":
        return cause, Fix(
            "run the vision encoder with gradients, or freeze it if it should not learn",
            (
                f"features = {module_of(p.name for p in reach.missing if p.role == last)}(pixel_values)  "
                "# not under torch.no_grad() or .detach()",
            ),
        )
    return cause, Fix(
        "insert the image features into the text with gradients",
        (
            (
                "x = x.masked_scatter(mask[..., None], features)  # and not through .data or under "
                "torch.no_grad()"
            ),
        ),
    )


def _finding(
    message: str, severity: Severity, chosen: Sequence[Parameter], reach: Reach, cause: str, fix: Fix
) -> Finding:
    tracks = [reach.tracks[p.name] for p in chosen]
    return Finding(
        message,
        severity,
        at=places([p.name for p in chosen], [p.name for p in reach.seen]),
        measured={
            "parameters": len(chosen),
            "passes": min(track.samples for track in tracks),
            "with_gradient": sum(track.with_gradient - track.zero_gradient for track in tracks),
        },
        threshold={"with_gradient": 1},
        cause=cause,
        fix=fix,
        parameters=tuple(p.name for p in chosen),
    )


@no_gradient.bad
def features_through_data() -> tuple[Parameters, Steps]:
    """The image features are copied in through .data: the images matter, the gradient does not come back."""
    return sample_parameters(), sample_steps(track=without_gradient("vision"))


@no_gradient.bad
def tower_under_no_grad() -> tuple[Parameters, Steps]:
    return sample_parameters(), sample_steps(track=without_gradient("vision_encoder"))


@no_gradient.bad
def one_backward_pass() -> tuple[Parameters, Backward]:
    """As `vlmdoctor check` sees it where no optimizer was given."""
    known = sample_parameters()
    gradients = [
        Gradient(
            name=p.name, role=p.role, present=p.role != "vision", zero=None if p.role == "vision" else False
        )
        for p in known.parameters
    ]
    return known, Backward(
        loss=6.5, gradients=tuple(gradients), trainable=len(gradients), parameters=len(gradients), images=4
    )


@no_gradient.bad
def experts_that_are_not_weighted() -> tuple[Parameters, Backward]:
    known = sample_parameters()
    named = [("blocks.0.mlp.router.weight", False), ("blocks.0.mlp.experts.0.up.weight", True)]
    more = tuple(
        dataclasses.replace(known.parameters[-1], name=name, role="language", layer="blocks.0", depth=0)
        for name, _ in named
    )
    gradients = [Gradient(name=p.name, role=p.role, present=True, zero=False) for p in known.parameters]
    gradients += [
        Gradient(name=name, role="language", present=there, zero=False if there else None)
        for name, there in named
    ]
    parameters = dataclasses.replace(known, parameters=(*known.parameters, *more))
    return parameters, Backward(
        loss=6.5, gradients=tuple(gradients), trainable=len(gradients), parameters=len(gradients), images=4
    )


@no_gradient.good
def projector_that_starts_at_zero() -> tuple[Parameters, Backward]:
    """As Gemma 3 does: in the first pass all gradients of the tower are zero, but for its unused head."""
    known = sample_parameters()
    vision = [p for p in known.parameters if p.role == "vision"]
    head = dataclasses.replace(vision[-1], name="vision_encoder.head.weight", layer="", depth=None)
    gradients = [
        Gradient(name=p.name, role=p.role, present=True, zero=p.role == "vision") for p in known.parameters
    ]
    gradients.append(Gradient(name=head.name, role="vision", present=False, zero=None))
    parameters = dataclasses.replace(known, parameters=(*known.parameters, head))
    return parameters, Backward(
        loss=6.5,
        gradients=tuple(gradients),
        trainable=len(gradients),
        parameters=len(gradients) - 1,
        images=4,
    )


@no_gradient.good
def no_sound_in_the_batch() -> tuple[Parameters, Backward]:
    known = sample_parameters()
    ears = dataclasses.replace(known.parameters[-1], name="model.audio_tower.conv.weight", role="other")
    gradients = [Gradient(name=p.name, role=p.role, present=True, zero=False) for p in known.parameters]
    gradients.append(Gradient(name=ears.name, role="other", present=False, zero=None))
    parameters = dataclasses.replace(known, parameters=(*known.parameters, ears))
    return parameters, Backward(
        loss=6.5,
        gradients=tuple(gradients),
        trainable=len(gradients),
        parameters=len(gradients) - 1,
        images=4,
    )


@no_gradient.good
def last_vision_layer_unused() -> tuple[Parameters, Steps]:
    """LLaVA takes the features of the last layer but one: nothing reaches the last one, by design."""
    return sample_parameters(), sample_steps(track=without_gradient("vision_encoder.layers.3"))


@no_gradient.good
def behind_a_projector_of_zeros() -> tuple[Parameters, Backward]:
    """The path is there, and what comes back over it is zero at first; the last vision layer is unused."""
    known = sample_parameters()
    gradients = []
    for p in known.parameters:
        unused = p.name.startswith("vision_encoder.layers.3.")
        gradients.append(
            Gradient(
                name=p.name, role=p.role, present=not unused, zero=None if unused else p.role == "vision"
            )
        )
    return known, Backward(
        loss=6.5, gradients=tuple(gradients), trainable=len(gradients), parameters=len(gradients), images=4
    )


@no_gradient.good
def keys_and_values_alone_are_read() -> tuple[Parameters, Backward]:
    """Another model reads the cache of the language model: nothing else of its last layer is used."""
    read = ("norm_in", "k_proj", "v_proj")
    parts = (*read, "q_proj", "o_proj", "mlp.up_proj")
    names = [f"lm.layers.{layer}.{part}.weight" for layer in range(2) for part in parts]
    known, gradients = [], []
    for name in (*names, "lm.norm.weight"):
        layer, depth = layer_of(name)
        known.append(
            Parameter(
                name=name,
                role=role_of(name),
                layer=layer,
                depth=depth,
                shape=(8, 8),
                dtype="float32",
                requires_grad=True,
            )
        )
        present = depth == 0 or any(f".{part}." in name for part in read)
        gradients.append(
            Gradient(name=name, role=role_of(name), present=present, zero=False if present else None)
        )
    return Parameters(parameters=tuple(known)), Backward(
        loss=6.5, gradients=tuple(gradients), trainable=len(known), parameters=len(known)
    )


@no_gradient.good
def everything_learns() -> tuple[Parameters, Steps]:
    return sample_parameters(), sample_steps()
