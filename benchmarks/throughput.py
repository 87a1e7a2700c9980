"""Training throughput of minivlm's decoder and trainer against a plain loop over transformers' Llama.

    python benchmarks/throughput.py --preset minimind-v --batch 8 --length 128

Both have the same sizes, see the same tokens, and take turns within one process, so that whatever else the
machine is doing hits both alike: what counts is the median of the paired ratios. Peak memory is measured in
a fresh process for each. The plain loop is what one writes first: forward, backward, clip, AdamW, zero_grad.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minivlm.callbacks import Callback, Callbacks
from minivlm.distributed import World, choose_device
from minivlm.factory import build
from minivlm.meter import memory_mb
from minivlm.run import Run
from minivlm.setup import Prepared, choose_dtype
from minivlm.signals import StopSignals
from minivlm.train import loop
from minivlm.train_config import TrainConfig
from minivlm.trainable import parameter_groups

WARM_UP = 3


@dataclass(frozen=True)
class Tokens:
    """The task of both: `length` random tokens a sample, of which the last `supervised` share is learned."""

    model: torch.nn.Module
    vocabulary: int
    length: int
    supervised: float
    endless = True
    blocks = ()

    @property
    def dataset(self) -> Tokens:
        return self

    @property
    def choices(self) -> int:
        return self.vocabulary

    def __len__(self) -> int:
        return 2**20

    def __getitem__(self, i: int) -> torch.Tensor:
        return torch.randint(4, self.vocabulary, (self.length,), generator=torch.Generator().manual_seed(i))

    def collate(self, rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
        ids = torch.stack(rows)
        labels = ids.clone()
        labels[:, : round(self.length * (1 - self.supervised))] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def targets(self, batch: dict[str, torch.Tensor]) -> int:
        return int((batch["labels"][:, 1:] != -100).sum())

    def tokens(self, batch: dict[str, torch.Tensor]) -> int:
        return batch["input_ids"].numel()

    def evaluate(self, autocast: Callable[[], Any]) -> dict[str, Any]:
        return {}


class Stopwatch(Callback):
    """The time of the steps after the warm-up."""

    def on_log(self, run: Run, record: Any) -> None:
        if record["step"] == WARM_UP - 1:
            self.began = time.perf_counter()
        self.ended = time.perf_counter()


def ours(arguments: argparse.Namespace) -> Callable[[], float]:
    """A function that trains minivlm for some steps with its own trainer, and says how long they took."""
    device = choose_device(arguments.device)
    model, processor = build(arguments.preset, seed=0)
    # Only the decoder is compared: what sees is left out, in the memory too.
    model.model.vision_encoder = model.model.vision_proj = torch.nn.Identity()
    task = Tokens(model.to(device).train(), model.config.vocab_size, arguments.length, arguments.supervised)
    config = TrainConfig(
        preset=arguments.preset,
        batch_size=arguments.batch,
        steps=WARM_UP + arguments.steps,
        lr=1e-4,
        eval_samples=0,
        save_every=0,
        log_every=1,
    ).resolved()
    optimizer = torch.optim.AdamW(
        parameter_groups(model, config), lr=config.lr, betas=(0.9, 0.95), fused=True
    )

    def measure() -> float:
        with tempfile.TemporaryDirectory() as folder:
            run = Run(
                model=model,
                optimizer=optimizer,
                scaler=None,
                config=config,
                model_config=model.config,
                processor=processor,
                out=Path(folder),
                device=device,
                is_main=True,
                trainable_patterns=("*",),
                vocab_size=task.choices,
                total_steps=config.steps,
            )
            watch = Stopwatch()
            prepared = Prepared(run, task, model, choose_dtype(arguments.precision, device))
            loop(prepared, World(0, 1, device), Callbacks([watch]), StopSignals())
        return watch.ended - watch.began

    return measure


def theirs(arguments: argparse.Namespace) -> Callable[[], float]:
    """The same with transformers' Llama in a plain loop."""
    from transformers import LlamaConfig, LlamaForCausalLM

    device = choose_device(arguments.device)
    sizes = build(arguments.preset, seed=0)[0].config
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    more = ("num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_parameters")
    config = LlamaConfig(
        **{name: getattr(sizes, name) for name in names + more}, tie_word_embeddings=True, use_cache=False
    )
    model = LlamaForCausalLM(config).to(device).train()
    task = Tokens(model, sizes.vocab_size, arguments.length, arguments.supervised)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    dtype = choose_dtype(arguments.precision, device)

    def measure() -> float:
        began = 0.0
        for step in range(WARM_UP + arguments.steps):
            if step == WARM_UP:
                began = time.perf_counter()
            rows = [task[step * arguments.batch + i] for i in range(arguments.batch)]
            batch = {name: value.to(device) for name, value in task.collate(rows).items()}
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            loss.item()
        return time.perf_counter() - began

    return measure


def peak(side: Callable[[argparse.Namespace], Callable[[], float]], arguments: argparse.Namespace) -> float:
    """Peak memory of this process after one round, in MiB."""
    torch.set_num_threads(arguments.threads)
    side(arguments)()
    return memory_mb(choose_device(arguments.device)) or float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="minimind-v")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--supervised", type=float, default=1.0, help="share of the tokens that is learned")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    sides = {"minivlm": ours, "llama": theirs}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        memory = {name: pool.apply(peak, (side, arguments)) for name, side in sides.items()}
    measures = {name: side(arguments) for name, side in sides.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(arguments.rounds):
        # Turn about, so that neither always comes first.
        for name in sorted(sides, reverse=bool(number % 2)):
            seconds[name].append(measures[name]())
    tokens = arguments.batch * arguments.length * arguments.steps
    for name in sides:
        speed = tokens / statistics.median(seconds[name])
        print(f"{name:<8} {speed:>10,.0f} tokens/s {memory[name]:>8,.0f} MiB peak")
    ratios = [theirs / ours for ours, theirs in zip(seconds["minivlm"], seconds["llama"], strict=True)]
    low, high = min(ratios), max(ratios)
    median = statistics.median(ratios)
    print(f"minivlm is {median:.2f} times as fast ({len(ratios)} pairs, {low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
