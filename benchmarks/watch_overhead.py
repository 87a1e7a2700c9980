"""What watching costs: two equal models train in alternating blocks in one process, one of them watched.

The cost is the ratio of a watched block's time to that of the unwatched block beside it; reported are
the median of the ratios, their middle half, and a 95 % interval of the median. The aims are at
most 1.02 at the default sampling and 1.05 when every step is sampled.

    python benchmarks/watch_overhead.py                      # minimind-v, vision encoder frozen
    python benchmarks/watch_overhead.py --preset tiny --batch 32 --tokens 48
    python benchmarks/watch_overhead.py --clock cpu --threads 1    # where other programs are at work too
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from vlmdoctor.watching.watcher import Watcher

Batches = list[dict[str, torch.Tensor]]


def build(preset: str, batch: int, tokens: int) -> tuple[nn.Module, Batches]:
    """The preset's model and a few random batches in its format."""
    import minivlm

    built = minivlm.build(preset)
    model = built[0] if isinstance(built, tuple) else built
    config = model.config
    size, images = config.image_size, config.image_tokens
    batches = []
    for _ in range(4):
        text = torch.randint(8, config.vocab_size, (batch, tokens))
        text[text == config.image_token_id] = 8
        marks = torch.full((batch, images), config.image_token_id)
        ids = torch.cat([text[:, :2], marks, text[:, 2:]], dim=1)
        labels = ids.masked_fill(ids == config.image_token_id, -100)
        batches.append(
            {
                "input_ids": ids,
                "attention_mask": torch.ones_like(ids),
                "labels": labels,
                "pixel_values": torch.randn(batch, 3, size, size),
            }
        )
    return model, batches


def trainer(
    model: nn.Module, batches: Batches, clock: Callable[[], float]
) -> tuple[Callable[[int], float], object]:
    """A plain loop; returns a function that takes some steps and tells the seconds, and the optimizer."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    made = 0

    def block(steps: int) -> float:
        nonlocal made
        started = clock()
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = model(**batches[made % len(batches)]).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            loss.item()
            made += 1
        return clock() - started

    return block, optimizer


def measure(
    model: nn.Module, batches: Batches, every: int, pairs: int, steps: int, clock: Callable[[], float]
) -> dict[str, object]:
    """Ratios of watched to unwatched blocks, in alternating order so that drift cancels."""
    plain, _ = trainer(copy.deepcopy(model), batches, clock)
    watched_model = copy.deepcopy(model)
    watched, optimizer = trainer(watched_model, batches, clock)
    with Watcher(watched_model, optimizer, every=every, on_error="raise"):
        # Past the steps that are always sampled, and both warm.
        plain(2)
        watched(max(10, every))
        gc.collect()
        gc.disable()
        ratios, seconds = [], []
        for pair in range(pairs):
            first, second = (plain, watched) if pair % 2 else (watched, plain)
            a, b = first(steps), second(steps)
            base, observed = (a, b) if first is plain else (b, a)
            ratios.append(observed / base)
            seconds.append(base / steps)
        gc.enable()
    ratios.sort()
    middle, spread = len(ratios) / 2, 0.98 * len(ratios) ** 0.5
    low, high = max(0, int(middle - spread)), min(len(ratios) - 1, int(middle + spread))
    return {
        "every": every,
        "ratio": round(statistics.median(ratios), 4),
        "middle_half": [round(ratios[len(ratios) // 4], 4), round(ratios[-1 - len(ratios) // 4], 4)],
        "interval_95": [round(ratios[low], 4), round(ratios[high], 4)],
        "pairs": pairs,
        "steps_per_block": steps,
        "milliseconds_per_step": round(1000 * statistics.median(seconds), 2),
    }


def main() -> None:
    """Prints one JSON line for each sampling."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--preset", default="minimind-v")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=256, help="text tokens in each sample")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--every", type=int, nargs="+", default=[10, 1])
    parser.add_argument("--threads", type=int, default=0, help="0: as torch chooses")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: of this process")
    parser.add_argument("--train-vision", action="store_true", help="also train the vision encoder")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    torch.manual_seed(0)
    model, batches = build(options.preset, options.batch, options.tokens)
    model.train()
    for name, parameter in model.named_parameters():
        if "vision_encoder" in name and not options.train_vision:
            parameter.requires_grad_(False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    for every in options.every:
        # A block holds whole periods of the sampling; the few steps of a small one are enough.
        result = measure(model, batches, every, options.pairs, max(every, 2), clock)
        facts = {"preset": options.preset, "trained": trained, "clock": options.clock}
        print(json.dumps({**facts, **result}), flush=True)


if __name__ == "__main__":
    main()
