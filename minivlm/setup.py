"""From settings to a run that is ready to take its first step, or the next one after a resume."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minivlm import checkpoint
from minivlm.distributed import World
from minivlm.errors import UserError
from minivlm.factory import build, load, no_progress_bars
from minivlm.lock import FolderLock
from minivlm.resume import load_model_state, load_state, restore
from minivlm.run import Run, is_finished
from minivlm.run_folder import RunFolder, clear_the_way
from minivlm.task import Answers, Contrastive, Task
from minivlm.train_config import TrainConfig, resumed
from minivlm.trainable import add_adapters, merged_state, parameter_groups, patterns_of, set_trainable


@dataclasses.dataclass(frozen=True)
class Prepared:
    """All that the loop needs: the run as callbacks see it, the task, the whole model, and the precision.

    `lock` is that of the run folder, in the main process of a run that has one.
    """

    run: Run
    task: Task
    vlm: Any
    dtype: torch.dtype | None
    lock: FolderLock | None = None

    def autocast(self) -> Any:
        """The context of a forward pass."""
        if self.dtype is None:
            return nullcontext()
        return torch.autocast(self.run.device.type, self.dtype)

    def check_folder(self) -> None:
        """Makes sure that the run folder is still there.

        Raises:
            UserError: It was removed.
        """
        if self.lock is not None:
            self.lock.check()

    def write_checkpoint(self, folder: Path, random_states: list[dict[str, Any]]) -> None:
        """Fills a checkpoint's folder."""
        run = self.run
        adapted = run.config.lora_rank > 0
        with no_progress_bars():
            self.vlm.save_pretrained(folder, state_dict=merged_state(self.vlm) if adapted else None)
            run.processor.save_pretrained(folder)
        state = {
            "step": run.step,
            "tokens": run.tokens,
            "seconds": run.seconds,
            "evaluation": run.evaluation,
            "config": dataclasses.asdict(run.config),
            "optimizer": run.optimizer.state_dict(),
            "scaler": run.scaler.state_dict() if run.scaler else None,
            "random": random_states,
            # What the model's own files lack: the head of stage clip, adapters before they were merged.
            "model": run.model.state_dict() if adapted or run.model is not self.vlm else None,
        }
        with (folder / checkpoint.STATE).open("wb") as file:
            torch.save(state, file)


def prepare(given: TrainConfig, world: World) -> Prepared:
    """Builds or resumes a run. Its folder is locked until the lock is released.

    Raises:
        UserError: Something that the user gave can't be used; nothing has been deleted or trained then.
    """
    folder = RunFolder(given)
    try:
        while True:
            out, resume_from = folder.choose(world)
            try:
                return dataclasses.replace(_prepared(given, world, out, resume_from), lock=folder.lock)
            except checkpoint.BrokenCheckpoint as error:
                folder.refuse(resume_from, error)
    except BaseException:
        folder.release()
        raise


def _prepared(given: TrainConfig, world: World, out: Path, resume_from: Path | None) -> Prepared:
    """The run in a folder that was chosen, from a checkpoint or from the start.

    Raises:
        BrokenCheckpoint: That of all processes: the checkpoint is well-formed, and not this run's.
        UserError: As `prepare`.
    """
    state: dict[str, Any] = {}
    if resume_from is not None:
        state = load_state(resume_from)
        given = resumed(given, state["config"], str(out))
    config = dataclasses.replace(given.resolved(), out=str(out), resume=False, overwrite=False)
    seed_everything(config.seed)

    vlm, processor = build_model(config, resume_from)
    task: Task = (Contrastive if config.stage == "clip" else Answers)(vlm, processor, config)
    if config.lora_rank:
        add_adapters(vlm, config.lora_rank)
    if state.get("model") is not None:
        load_model_state(task.model, state["model"])
    if config.gradient_checkpointing:
        # Renamed in the course of transformers 5.
        enable = getattr(vlm, "activation_checkpointing_enable", None) or vlm.gradient_checkpointing_enable
        enable()
    patterns = patterns_of(config.trainable, task.model)
    set_trainable(task.model, patterns)
    task.model.to(world.device).train()
    config = with_steps(config, len(task.dataset), world)
    if world.is_main:
        checkpoint.check_space(out, bytes_needed(vlm, task.model, config))

    optimizer = torch.optim.AdamW(
        parameter_groups(task.model, config), lr=config.lr, betas=(0.9, 0.95), fused=True
    )
    dtype = choose_dtype(config.precision, world.device)
    scaler = torch.amp.GradScaler(world.device.type) if dtype == torch.float16 else None
    run = Run(
        model=task.model,
        optimizer=optimizer,
        scaler=scaler,
        config=config,
        model_config=vlm.config,
        processor=processor,
        out=out,
        device=world.device,
        is_main=world.is_main,
        trainable_patterns=patterns,
        vocab_size=task.choices,
        total_steps=config.planned_steps,
    )
    if state:
        restore(run, state, world)
        if run.step >= run.total_steps and is_finished(out):
            raise UserError(
                f"the run in {out} took all of its {run.step} steps; give --steps N to train it longer."
            )
    if world.is_main:
        # Last of all: whatever the user got wrong has been found by now, with the old run still there.
        clear_the_way(out, resume_from)
    return Prepared(run, task, vlm, dtype)


def build_model(config: TrainConfig, resume_from: Path | None) -> tuple[Any, Any]:
    """Model and processor, from a checkpoint or with fresh weights."""
    if resume_from is None and config.init_from is not None:
        if config.set or config.tokenizer or config.vision_from:
            raise UserError(
                "--init-from brings its own sizes, encoder and tokenizer; leave --set and the like out."
            )
        resume_from = checkpoint.find_checkpoint(config.init_from)
    if resume_from is not None:
        return load(resume_from)
    overrides = {}
    for item in config.set:
        name, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"--set is '{item}'; it must be FIELD=VALUE, such as --set num_hidden_layers=4.")
        overrides[name.strip()] = value.strip()
    return build(
        config.preset, overrides, vision_from=config.vision_from, tokenizer=config.tokenizer, seed=config.seed
    )


def with_steps(config: TrainConfig, dataset_size: int, world: World) -> TrainConfig:
    """The same with `epochs` turned into `steps`."""
    if config.epochs is None:
        return config
    steps = math.ceil(config.epochs * dataset_size / samples_per_step(config, world))
    return dataclasses.replace(config, steps=steps, epochs=None)


def samples_per_step(config: TrainConfig, world: World) -> int:
    """Samples that one optimizer step learns from, over all processes."""
    return config.batch_size * config.accumulate * world.size


def bytes_needed(vlm: Any, model: Any, config: TrainConfig) -> int:
    """About what the checkpoints will take: the weights, two moments of what learns, and a little more."""
    weights = sum(p.numel() * p.element_size() for p in vlm.parameters())
    moments = 2 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return (weights + moments + 2**20) * (config.keep_last + 1)


def choose_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What autocast computes in; None for no autocast.

    Raises:
        UserError: The device can't.
    """
    if precision == "auto":
        if device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if precision == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU; on a CPU use fp32 or bf16.")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def seed_everything(seed: int) -> None:
    """Seeds every generator that a model or a dataset may draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def machine_settings(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Threads and TF32 as asked for, and afterwards as they were."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    if config.threads:
        torch.set_num_threads(config.threads)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)
