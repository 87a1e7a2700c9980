"""The training loop, from the first step to the last.

for each optimizer step
    learning rate <- schedule(step)
    count the answer tokens of all micro-batches, over all processes
    forward and backward each micro-batch; the losses add up to the mean over those tokens
    clip, step
    every now and then: log, evaluate, save
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from minivlm.callbacks import Callback, Callbacks, TensorBoardCallback, WandbCallback
from minivlm.checkpoint import checkpoints, save_checkpoint, step_of
from minivlm.data.load import BUILT_IN
from minivlm.distributed import World, joined
from minivlm.errors import UserError
from minivlm.evaluate import random_state
from minivlm.gradients import Stepper, clip_gradients
from minivlm.meter import Meter
from minivlm.run import Run, Summary
from minivlm.schedule import warmup_cosine
from minivlm.setup import Prepared, machine_settings, prepare, samples_per_step
from minivlm.signals import Interrupted, StopSignals
from minivlm.task import batches
from minivlm.train_config import TrainConfig


def train(
    config: TrainConfig, callbacks: Sequence[Callback] = (), command: Sequence[str] = ("minivlm", "train")
) -> Summary:
    """Trains as `config` says, in this process or in those that `torchrun` started.

    The run folder gets checkpoints and `summary.json`. `command` is what a person would type to start such a
    run; with it an interruption says how to go on.

    Raises:
        UserError: Something that the user gave can't be used, or the run can't go on; checkpoints stay whole.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was written.
    """
    trackers = _trackers(config)
    with joined(config.device) as world, StopSignals() as signals:
        try:
            prepared = prepare(config, world)
        except KeyboardInterrupt as stop:
            raise _stopped_before_the_first_step(stop, signals) from stop.__cause__
        try:
            return _trained(prepared, world, signals, [*callbacks, *trackers], command)
        finally:
            if prepared.lock is not None:
                prepared.lock.release()


def _trained(
    prepared: Prepared,
    world: World,
    signals: StopSignals,
    callbacks: Sequence[Callback],
    command: Sequence[str],
) -> Summary:
    run = prepared.run
    observers = Callbacks(callbacks if run.is_main else [])
    with machine_settings(run.config, run.device):
        try:
            summary = loop(prepared, world, observers, signals, command)
        except BaseException as error:
            sentence = _for_user(error, run, signals, command)
            observers.call("on_exception", run, sentence)
            raise sentence from error.__cause__
        observers.call("on_train_end", run, summary)
    return summary


def loop(
    prepared: Prepared,
    world: World,
    observers: Callbacks,
    signals: StopSignals,
    command: Sequence[str] = ("minivlm", "train"),
) -> Summary:
    """All steps of a run that has been prepared."""
    run, task, config, device = prepared.run, prepared.task, prepared.run.config, world.device
    learning = [parameter for parameter in run.model.parameters() if parameter.requires_grad]
    model = _wrapped(run, world)
    stepper = Stepper(run.optimizer, run.scaler)
    stream = batches(task, config, world, run.step)
    meter = Meter(run.model, device, run.tokens, run.seconds)
    observers.call("on_train_begin", run)

    while run.step < run.total_steps:
        step = run.step
        share = warmup_cosine(step, steps=config.steps, warmup=config.warmup, min_ratio=config.min_lr_ratio)
        for group in run.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * share

        # What the loss is a mean of is counted over the whole step and all processes, so that every answer
        # token weighs the same, however the samples fell into micro-batches.
        micro_batches = [next(stream) for _ in range(config.accumulate)]
        counted = [sum(map(task.targets, micro_batches)), sum(map(task.tokens, micro_batches))]
        targets, tokens, stop = world.sum(torch.tensor([*counted, int(signals.received > 0)])).tolist()

        loss = torch.zeros((), device=device)
        for number, batch in enumerate(micro_batches, start=1):
            batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
            with _exchanging_gradients(model, number == len(micro_batches)):
                with prepared.autocast():
                    part = model(**batch, num_items_in_batch=max(1, targets)).loss
                # DDP takes the mean of all processes' gradients, while ours are the parts of a sum.
                scaled = part if world.size == 1 else part * world.size
                (scaled if run.scaler is None else run.scaler.scale(scaled)).backward()
            loss += part.detach()

        if run.scaler is not None:
            run.scaler.unscale_(run.optimizer)
        grad_norm = clip_gradients(learning, config.clip)
        stepper.step(grad_norm)
        run.optimizer.zero_grad(set_to_none=True)

        run.step, run.tokens, run.seconds = step + 1, run.tokens + tokens, meter.seconds
        last = run.step == run.total_steps
        if last or step % config.log_every == 0:  # the only place where the GPU is waited for
            record = {
                "step": step,
                "epoch": 1 + step * samples_per_step(config, world) // len(task.dataset),
                "loss": world.sum(loss).item(),
                "lr": config.lr * share,
                "grad_norm": grad_norm.item(),
                "supervised_tokens": targets,
                "tokens": run.tokens,
                **meter.read(run.tokens),
                "skipped": stepper.skipped,
                "seconds": run.seconds,
            }
            prepared.check_folder()
            observers.call("on_log", run, record)
            stepper.check(step)
        with meter.paused():
            if last or _due(run.step, config.eval_every):
                _evaluate(prepared, world, observers)
            if last or stop or _due(run.step, config.save_every):
                _save(prepared, world, observers)
        if stop and not last:
            raise Interrupted(
                f"stopped after {run.step} of {run.total_steps} steps; to go on: "
                f"{resume_command(command, run)}",
                signals.received or signal.SIGINT,
            )

    if run.evaluation.get("step") != run.total_steps - 1:
        _evaluate(prepared, world, observers)  # killed between the last step and its evaluation
    run.seconds = meter.seconds
    summary = Summary.of(run, finished=True)
    if run.is_main:
        summary.write(run.out)
    return summary


def _wrapped(run: Run, world: World) -> nn.Module:
    """The model as it is called: compiled and distributed as asked for."""
    model: Any = torch.compile(run.model) if run.config.compile else run.model
    if world.size == 1:
        return model
    # A batch without images leaves the vision side without gradients; the built-in data has none such.
    sometimes_unused = run.config.data not in BUILT_IN and run.config.stage != "clip"
    return DistributedDataParallel(
        model,
        device_ids=[world.device.index] if world.device.type == "cuda" else None,
        find_unused_parameters=sometimes_unused,
        gradient_as_bucket_view=True,
    )


def _exchanging_gradients(model: nn.Module, last: bool) -> AbstractContextManager:
    """Between processes, gradients are exchanged once a step: with the last micro-batch."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def _due(steps: int, every: int) -> bool:
    return every > 0 and steps % every == 0


def _evaluate(prepared: Prepared, world: World, observers: Callbacks) -> None:
    run = prepared.run
    if not run.config.eval_samples:
        return
    prepared.check_folder()

    def progress(done: int, total: int) -> None:
        observers.call("on_evaluating", run, done, total)

    record = (
        {"step": run.step - 1, **prepared.task.evaluate(prepared.autocast, progress)} if run.is_main else {}
    )
    run.evaluation = world.gather(record)[0]
    observers.call("on_evaluate", run, run.evaluation)
    if run.is_main:
        Summary.of(run, finished=False).write(run.out)


def _save(prepared: Prepared, world: World, observers: Callbacks) -> None:
    run = prepared.run
    prepared.check_folder()
    random_states = world.gather(random_state())
    if run.is_main:
        path = save_checkpoint(
            run.out,
            run.step,
            lambda folder: prepared.write_checkpoint(folder, random_states),
            run.config.keep_last,
        )
        observers.call("on_checkpoint", run, path)
        Summary.of(run, finished=False).write(run.out)
    world.barrier()


def _for_user(error: BaseException, run: Run, signals: StopSignals, command: Sequence[str]) -> BaseException:
    """The same error, or the sentence for it where the user can do something about it."""
    if isinstance(error, torch.OutOfMemoryError):
        return UserError(
            f"{run.device} ran out of memory in step {run.step}; lower --batch-size and raise --accumulate "
            "by as much, or add --gradient-checkpointing."
        )
    if isinstance(error, KeyboardInterrupt):
        found = checkpoints(run.out)
        how = (
            f"to go on from the checkpoint after {step_of(found[-1])}: {resume_command(command, run)}"
            if found
            else "no checkpoint had been written"
        )
        return signals.at_once(f"stopped at once after {run.step} of {run.total_steps} steps; {how}")
    return error


def resume_command(command: Sequence[str], run: Run) -> str:
    """The whole command that goes on with a run, ready to be pasted; other settings are in its checkpoint."""
    stop = [] if run.config.max_steps is None else ["--max-steps", str(run.config.max_steps)]
    folder = str(run.out) if not str(run.out).startswith("-") else f"./{run.out}"
    return shlex.join([*command, "--resume", folder, *stop])


def _stopped_before_the_first_step(stop: KeyboardInterrupt, signals: StopSignals) -> BaseException:
    if not signals.received:
        return stop
    return signals.at_once("stopped before the first step; nothing was trained or changed")


def _trackers(config: TrainConfig) -> list[Callback]:
    """The trackers that were asked for."""
    wanted = ((config.tensorboard, TensorBoardCallback), (config.wandb, WandbCallback))
    return [kind() for chosen, kind in wanted if chosen]
