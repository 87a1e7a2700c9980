"""Everything that can be chosen about a training run, without importing torch."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from minivlm.errors import UserError

STAGES = ("clip", "align", "sft")
POLICIES = ("all", "frozen-vision", "projector", "vision", "language")
CHOICES: dict[str, tuple[str, ...]] = {
    "stage": STAGES,
    "precision": ("auto", "fp32", "bf16", "fp16"),
    "images": ("real", "shuffled", "blank"),
    "padding_side": ("right", "left"),
    "on_bad_row": ("skip", "refuse"),
}

GENERAL: dict[str, Any] = {
    "steps": 2000,
    "batch_size": 32,
    "accumulate": 1,
    "lr": 1e-3,
    "weight_decay": 0.05,
    "warmup": 100,
    "min_lr_ratio": 0.05,
    "clip": 1.0,
    "max_length": 512,
    "eval_every": 500,
    "eval_samples": 600,
    "save_every": 500,
    "threads": 0,
    "trainable": "all",
}
"""Used where neither the user nor the preset says anything."""

OF_STAGE: dict[str, dict[str, Any]] = {
    "clip": {"trainable": "vision", "steps": 1500, "batch_size": 128},
    "align": {"trainable": "projector"},
    "sft": {},
}
"""What a stage sets before the preset is asked."""


def option(default: Any, text: str, panel: str, metavar: str | None = None) -> Any:
    """A field with the text that `--help` shows for it, and the heading it stands under."""
    return field(default=default, metadata={"help": text, "panel": panel, "metavar": metavar})


MODEL, DATA, LENGTH, OPTIMIZER, HARDWARE, RUN = "Model", "Data", "Length", "Optimizer", "Hardware", "Run"


@dataclass(frozen=True)
class TrainConfig:
    """The settings of one run; `None` means "what the preset says".

    Counts are in optimizer steps, batch sizes in samples per process and micro-batch, lengths in tokens.
    Every field is a command-line option of `python -m minivlm train` and of `vlmdoctor train`.
    """

    preset: str = option(
        "tiny", "Size of the model: tiny, tiny8, colab, minimind-v, minimind-3v or base.", MODEL
    )
    set: tuple[str, ...] = option(
        (), "Override one field of the model's config; may be repeated.", MODEL, "FIELD=VALUE"
    )
    init_from: str | None = option(
        None, "Start from the weights of this checkpoint or run folder.", MODEL, "FOLDER"
    )
    tokenizer: str | None = option(
        None, "Take the tokenizer of this folder or hub name instead of the preset's.", MODEL
    )
    vision_from: str | None = option(
        None, "Take the vision encoder of this CLIP or SigLIP checkpoint.", MODEL
    )
    stage: str = option(
        "sft",
        "clip: the encoder, contrastively; align: the projector; sft: answers.",
        MODEL,
        "clip|align|sft",
    )
    trainable: str | None = option(
        None,
        f"What learns: {', '.join(POLICIES)}, or patterns of parameter names such as '*vision_proj*,*norm*'.",
        MODEL,
        "POLICY",
    )
    lora_rank: int = option(
        0, "Train low-rank adapters of the decoder instead of its weights (needs peft).", MODEL
    )

    data: str = option("digits", "digits, emoji, a file of conversations, or a name on the hub.", DATA)
    test_data: str | None = option(None, "Evaluate on this data instead of the test split of --data.", DATA)
    images: str = option(
        "real",
        "Train on the right images, on those of other samples, or on blank ones.",
        DATA,
        "real|shuffled|blank",
    )
    max_length: int | None = option(None, "Longest sample, in tokens with the image's.", DATA)
    padding_side: str = option("right", "Where short samples are padded.", DATA, "right|left")
    packing: bool = option(False, "Put several samples into one row, kept apart by the attention mask.", DATA)
    on_bad_row: str = option(
        "skip", "Skip and count broken rows of your data, or refuse them.", DATA, "skip|refuse"
    )

    steps: int | None = option(None, "Optimizer steps, over which the learning rate falls.", LENGTH)
    epochs: float | None = option(None, "The same in passes over the data, instead of --steps.", LENGTH)
    max_steps: int | None = option(None, "Stop after this many steps of the schedule.", LENGTH)

    batch_size: int | None = option(None, "Samples in a micro-batch of one process.", OPTIMIZER)
    accumulate: int | None = option(None, "Micro-batches in an optimizer step.", OPTIMIZER)
    lr: float | None = option(None, "Peak learning rate.", OPTIMIZER)
    lr_vision: float | None = option(
        None, "Peak learning rate of the vision encoder, instead of --lr.", OPTIMIZER
    )
    lr_projector: float | None = option(None, "The same of the projector.", OPTIMIZER)
    lr_language: float | None = option(None, "The same of the language model and its head.", OPTIMIZER)
    weight_decay: float | None = option(
        None, "Decay of the weights of linear and convolution layers.", OPTIMIZER
    )
    warmup: int | None = option(None, "Steps over which the learning rate rises.", OPTIMIZER)
    min_lr_ratio: float | None = option(
        None, "Share of the learning rate that is left at the end.", OPTIMIZER
    )
    clip: float | None = option(None, "Largest gradient norm; 0 for no clipping.", OPTIMIZER)

    precision: str = option(
        "auto", "auto is bf16 (else fp16) on a GPU and fp32 elsewhere.", HARDWARE, "auto|fp32|bf16|fp16"
    )
    tf32: bool = option(True, "Allow TF32 in matrix products on GPUs that have it.", HARDWARE)
    compile: bool = option(False, "Compile the model with torch.compile.", HARDWARE)
    gradient_checkpointing: bool = option(False, "Recompute activations to save memory.", HARDWARE)
    workers: int = option(0, "Processes that load data; 0 loads it in the trainer itself.", HARDWARE)
    device: str = option("auto", "auto, cpu, cuda, cuda:1 or mps.", HARDWARE)
    threads: int | None = option(None, "Threads of torch on the CPU; 0 leaves them as they are.", HARDWARE)

    out: str | None = option(None, "Run folder; by default a new one under runs/.", RUN, "FOLDER")
    resume: bool = option(
        False,
        "Continue a run from its newest complete checkpoint: in FOLDER, else the newest run under runs/.",
        RUN,
    )
    overwrite: bool = option(False, "Delete the run that is in the run folder first.", RUN)
    seed: int = option(0, "Seed of the initial weights and of the order of the data.", RUN)
    log_every: int = option(10, "Steps between log lines.", RUN)
    eval_every: int | None = option(None, "Steps between evaluations; 0 evaluates only at the end.", RUN)
    eval_samples: int | None = option(None, "Test samples per evaluation; 0 for no evaluation at all.", RUN)
    save_every: int | None = option(None, "Steps between checkpoints; 0 saves only at the end.", RUN)
    keep_last: int = option(2, "Checkpoints that are kept.", RUN)
    tensorboard: bool = option(False, "Also log to TensorBoard, in the run folder.", RUN)
    wandb: bool = option(False, "Also log to Weights & Biases.", RUN)

    @property
    def planned_steps(self) -> int:
        """Optimizer steps that this run will take (of a resolved config that has no `epochs`)."""
        return self.steps if self.max_steps is None else min(self.steps, self.max_steps)

    @property
    def names_a_run(self) -> bool:
        """Whether something was given that a run folder is called after by default."""
        fields = {f.name: f.default for f in dataclasses.fields(self)}
        return any(getattr(self, name) != fields[name] for name in ("preset", "data", "stage"))

    def resolved(self) -> TrainConfig:
        """The same with every `None` that has a default filled in.

        Raises:
            UserError: A value that can't be used, or an unknown preset.
        """
        from minivlm.presets import preset

        self._check_choices()
        defaults = {**GENERAL, **preset(self.preset).training, **OF_STAGE[self.stage]}
        given = {name: value for name, value in vars(self).items() if value is not None}
        config = dataclasses.replace(self, **{**known(defaults, "the preset's training defaults"), **given})
        config._check_numbers()
        return config

    def _check_choices(self) -> None:
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise UserError(unknown(flag(name), getattr(self, name), choices))
        if self.steps is not None and self.epochs is not None:
            raise UserError("--steps and --epochs both say how long the run is; give one of them.")
        if self.resume and self.overwrite:
            raise UserError(
                "--resume keeps the run in the run folder and --overwrite deletes it; give one of them."
            )
        if self.lora_rank and self.stage == "clip":
            raise UserError(
                "--lora-rank adapts the decoder, which stage clip does not train; leave one of them out."
            )

    def _check_numbers(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise UserError(f"{flag(name)} is {value}; it must be at least {least}.")
        for name in ("lr", "lr_vision", "lr_projector", "lr_language"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise UserError(
                    f"{flag(name)} is {value}; a learning rate is a number from 0 up, such as 1e-3."
                )
        if self.epochs is not None and not self.epochs > 0:
            raise UserError(f"--epochs is {self.epochs}; it must be more than 0.")
        if not 0 <= self.min_lr_ratio <= 1:
            raise UserError(f"--min-lr-ratio is {self.min_lr_ratio}; it is a share from 0 to 1.")


_LEAST: dict[str, float] = {
    **dict.fromkeys(("steps", "max_steps", "batch_size", "accumulate", "log_every", "keep_last"), 1),
    **dict.fromkeys(("warmup", "workers", "threads", "eval_every", "eval_samples", "save_every"), 0),
    **dict.fromkeys(("weight_decay", "clip", "lora_rank", "seed"), 0),
    "max_length": 8,
}


def flag(name: str) -> str:
    """`batch_size` as it is typed: `--batch-size`."""
    return "--" + name.replace("_", "-")


def unknown(what: str, given: Any, choices: Iterable[str]) -> str:
    """The sentence about a value that is none of `choices`, with the nearest one suggested."""
    names = list(choices)
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"it is one of {', '.join(names)}."
    return f"{what} is '{given}', which is unknown; {hint}"


def known(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`values` if all of them are fields of TrainConfig.

    Raises:
        UserError: Names the first one that is not.
    """
    names = [f.name for f in dataclasses.fields(TrainConfig)]
    for name in values:
        if name not in names:
            raise UserError(unknown(f"a field of {where}", name, names))
    return dict(values)


FREE_TO_CHANGE = (
    "out", "resume", "overwrite", "steps", "epochs", "max_steps", "workers", "device", "threads", "log_every",
    "eval_every", "eval_samples", "save_every", "keep_last", "tensorboard", "wandb",
)  # fmt: skip
"""What a resumed run may be given anew: none of it changes what has been learned so far."""


def resumed(given: TrainConfig, saved: Mapping[str, Any], where: str) -> TrainConfig:
    """The saved settings of a run, with those that the user gave anew and that may change.

    Raises:
        UserError: The user gave a setting that would make another run of it.
    """
    names = {f.name for f in dataclasses.fields(TrainConfig)}
    values = {name: value for name, value in saved.items() if name in names}
    values["set"] = tuple(values.get("set") or ())
    for f in dataclasses.fields(TrainConfig):
        value = getattr(given, f.name)
        if value == f.default:
            continue
        if f.name in FREE_TO_CHANGE:
            values[f.name] = value
        elif value != values.get(f.name):
            raise UserError(
                f"the run in {where} was started with {flag(f.name)} {values.get(f.name)}, not {value}; "
                f"leave the option out to continue it, or start a new run with --init-from {where}."
            )
    if given.steps is not None:
        values["epochs"] = None
    if given.epochs is not None:
        values["steps"] = None
    # How it was stopped last time is not how it must stop this time.
    values["max_steps"] = given.max_steps
    return TrainConfig(**values)
