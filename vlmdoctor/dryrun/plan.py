"""What the user means to train with, applied to a model without weights."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from vlmdoctor.errors import UserError
from vlmdoctor.knowledge.gpus import gpu_named
from vlmdoctor.knowledge.parameter_names import ROLES, canonical_name, role_of
from vlmdoctor.plain_text import first_line
from vlmdoctor.subject import Subject

if TYPE_CHECKING:
    import torch

    from vlmdoctor.evidence.shapes import Shapes

# Of the weights, and of autocast around forward.
PRECISIONS: dict[str, tuple[str, str | None]] = {
    "bf16": ("bfloat16", None),
    "fp16": ("float16", None),
    "fp32": ("float32", None),
    "amp-bf16": ("float32", "bfloat16"),
    "amp-fp16": ("float32", "float16"),
}
SHARDS = ("ddp", "fsdp2")
_MOST_RANKS = 65536


@dataclass(frozen=True)
class Plan:
    """The settings of a training run that decide what it costs.

    Attributes:
        precision: A name of `PRECISIONS`; None: the model's own dtype.
        own_weights: Whether weights keep their dtype under autocast, as in transformers' Trainer.
        optimizer: A name of `OPTIMIZERS`.
        checkpointing: Whether activations are recomputed in backward.
        lora: The rank of adapters on all linear layers, everything else frozen; None without.
        freeze: Roles whose parameters do not learn.
        gpu: A name of `GPUS`; None where no GPU was named.
        shard: A name of `SHARDS`; None on one device.
        world_size: Ranks; None on one device.
        attention: transformers' name of the attention to run; None: the model's own.
    """

    precision: str | None = None
    own_weights: bool = False
    optimizer: str = "adamw"
    checkpointing: bool = False
    lora: int | None = None
    freeze: tuple[str, ...] = ()
    gpu: str | None = None
    shard: str | None = None
    world_size: int | None = None
    attention: str | None = None

    def check(self) -> None:
        """Raises `UserError` for a setting that there is not."""
        from vlmdoctor.dryrun.optimizers import OPTIMIZERS

        asked: tuple[tuple[str, str | None, Collection[str]], ...] = (
            ("--precision", self.precision, PRECISIONS),
            ("--optimizer", self.optimizer, OPTIMIZERS),
            ("--shard", self.shard, SHARDS),
            *(("--freeze", role, ROLES) for role in self.freeze),
        )
        for option, value, choices in asked:
            if value is not None and value not in choices:
                raise UserError(f"{option} can't be '{value}'; choose one of {', '.join(choices)}.")
        if self.world_size is not None and self.shard is None:
            raise UserError("--world-size needs to know what the ranks share: --shard ddp or --shard fsdp2.")
        if self.shard is not None and self.world_size is None:
            raise UserError(f"--shard {self.shard} needs the number of ranks: --world-size N.")
        if self.world_size is not None and self.world_size > _MOST_RANKS:
            raise UserError(f"--world-size {self.world_size} is more than the dry run takes ({_MOST_RANKS}).")
        if self.gpu is not None:
            gpu_named(self.gpu)

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the weights; None: their own."""
        import torch

        if self.precision is None or self.own_weights:
            return None
        return getattr(torch, PRECISIONS[self.precision][0])

    @property
    def autocast(self) -> torch.dtype | None:
        """The lower precision of autocast; None without."""
        import torch

        lower = PRECISIONS[self.precision][1] if self.precision else None
        return getattr(torch, lower) if lower else None

    def as_trained(self, args: Any, *, optimizer_named: bool) -> Plan:
        """With what the user's training arguments say where the command line does not."""
        from vlmdoctor.dryrun.optimizers import OF_TRAINER

        def read(name: str) -> Any:
            return args.get(name) if isinstance(args, Mapping) else getattr(args, name, None)

        plan = self
        if plan.precision is None and (read("bf16") is True or read("fp16") is True):
            plan = replace(plan, precision="amp-bf16" if read("bf16") else "amp-fp16", own_weights=True)
        optim = read("optim")
        named = OF_TRAINER.get(str(getattr(optim, "value", optim)))
        if named is not None and not optimizer_named:
            plan = replace(plan, optimizer=named)
        if read("gradient_checkpointing") is True:
            plan = replace(plan, checkpointing=True)
        return plan

    def as_agreed(self, contract: Mapping[str, str] | None, model: Any) -> Plan:
        """With the parts of `model` frozen that the contract of a run says are."""
        from vlmdoctor.contract import state_of

        roles = {role_of(canonical_name(name)) for name, _ in model.named_parameters()}
        agreed = [role for role in ROLES if state_of((contract or {}).get(role, "")) == "frozen"]
        return replace(self, freeze=tuple(role for role in agreed if role in roles))


def prepared(model: Any, plan: Plan) -> Any:
    """`model` under the plan's settings: dtype, adapters, what is frozen, checkpointing. Works on a copy.

    Raises:
        UserError: The model can't be trained so.
    """
    from vlmdoctor.dryrun.meta_copy import meta_copy

    if (plan.dtype, plan.lora, plan.attention) == (None, None, None) and not (
        plan.checkpointing or plan.freeze
    ):
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return _adapted(meta_copy(model, plan.dtype), plan)


def _adapted(model: Any, plan: Plan) -> Any:
    if plan.attention is not None:
        try:
            model.set_attn_implementation(plan.attention)
        except (ValueError, AttributeError) as error:
            raise UserError(
                f"{type(model).__name__} has no attention '{plan.attention}': {first_line(error)}"
            ) from error
    if plan.lora is not None:
        model = _with_adapters(model, plan.lora)
    if plan.freeze:
        _freeze(model, plan.freeze)
    if plan.checkpointing:
        enable = getattr(model, "gradient_checkpointing_enable", None)
        if enable is None:
            raise UserError(f"{type(model).__name__} has no gradient checkpointing to enable.")
        _without_cache(model)
        try:
            enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        except ValueError as error:
            raise UserError(f"gradient checkpointing can't be enabled: {first_line(error)}.") from error
        model.train()
    return model


def _freeze(model: Any, roles: tuple[str, ...]) -> None:
    found = set()
    for name, parameter in model.named_parameters():
        role = role_of(canonical_name(name))
        if role in roles:
            parameter.requires_grad_(False)
            found.add(role)
    for role in roles:
        if role not in found:
            raise UserError(f"--freeze {role}: {type(model).__name__} has no parameters of that role.")


def _without_cache(model: Any) -> None:
    """Keys and values are not kept for generation while activations are recomputed."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if getattr(config, "use_cache", None):
            config.use_cache = False


def _with_adapters(model: Any, rank: int) -> Any:
    import torch

    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError("--lora needs the package peft; install it with: pip install peft") from None
    try:
        with torch.device("meta"):
            return get_peft_model(model, LoraConfig(r=rank, target_modules="all-linear"))
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        raise UserError(f"--lora can't be applied to {type(model).__name__}: {first_line(error)}") from error


def shapes_under(subject: Subject, plan: Plan, batch: Any = None) -> Shapes:
    """The dry step of the subject under the plan, on one device."""
    from vlmdoctor.probes.dry_run.shapes import shapes_of

    model = prepared(subject.model, plan)
    batch = subject.batch if batch is None else batch
    return shapes_of(model, batch, subject.loss_fn, autocast=plan.autocast)
