"""left-on-meta: some of the model's tensors have no values, since nothing was loaded into them."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.module_tree import ModuleTree
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.places import counted


@rule("left-on-meta", "CKPT120")
def left_on_meta(tree: ModuleTree) -> Iterator[Finding]:
    """Parameters or buffers left on the meta device, beside others that have values.

    ## Why it matters
    A model that is made on the meta device gets its values from the checkpoint. What the checkpoint lacks,
    such as a projector or tables that are never saved (`persistent=False`), has no values: the first forward
    pass raises, or `to_empty` fills it with whatever was in memory (compare [transformers
    45902](https://github.com/huggingface/transformers/issues/45902)).

    ## Confidence and false positives
    The devices are read from the tensors. Nothing is reported in a dry run (where only weights made by
    `torch.ones` and similar functions have values), where all parameters are on the meta device, and where
    accelerate's hooks load them when they are needed.

    ## What to do
    Load the missing part, and compute the tables again:

        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    """
    lost = tree.meta_parameters
    if tree.dry_run or tree.hooked or (lost and len(lost) == tree.parameters):
        return
    missing = (*lost, *tree.meta_buffers)
    if not missing:
        return
    parts = [counted(len(lost), "parameter")] if lost else []
    if tree.meta_buffers:
        parts.append(counted(len(tree.meta_buffers), "buffer"))
    yield Finding(
        f"{' and '.join(parts)} of the model {'has' if len(missing) == 1 else 'have'} no values",
        Severity.ERROR,
        at=missing[:8],
        measured={
            "parameters_on_meta": len(lost),
            "of": tree.parameters,
            "buffers_on_meta": len(tree.meta_buffers),
        },
        threshold={"parameters_on_meta": 0, "buffers_on_meta": 0},
        cause="they are on the meta device: the model was made there, and nothing was loaded into them",
        fix=Fix(
            "load the checkpoint that holds them, or initialise them; compute tables again on the real "
            "device",
            ("missing, unexpected = model.load_state_dict(state, strict=False, assign=True)",),
        ),
    )


@left_on_meta.bad
def projector_not_in_the_checkpoint() -> ModuleTree:
    return ModuleTree(
        parameters=70,
        meta_parameters=("multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_1.bias"),
    )


@left_on_meta.bad
def table_that_is_never_saved() -> ModuleTree:
    return ModuleTree(parameters=70, meta_buffers=("model.rotary_emb.inv_freq",))


@left_on_meta.good
def loaded() -> ModuleTree:
    return ModuleTree(parameters=70)


@left_on_meta.good
def no_weights_at_all() -> ModuleTree:
    """For a dry run."""
    return ModuleTree(parameters=2, meta_parameters=("a.weight", "b.weight"), meta_buffers=("a.table",))


@left_on_meta.good
def factory_in_a_dry_run() -> ModuleTree:
    """The norms are made by `torch.ones`, which has a value there as well."""
    return ModuleTree(parameters=3, meta_parameters=("a.weight", "b.weight"), dry_run=True)


@left_on_meta.good
def kept_on_disk_by_accelerate() -> ModuleTree:
    return ModuleTree(parameters=70, meta_parameters=("lm.layers.31.weight",), hooked=True)
