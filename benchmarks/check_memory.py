"""How much memory `vlmdoctor.check` takes beside a training step of the same model (Linux).

    python benchmarks/check_memory.py

Each line compares two processes: what the operating system says that each grew by, at most, from when the
model, its optimizer and a batch were there. Allocations are kept apart from each other
(`MALLOC_MMAP_THRESHOLD_`), so that what was freed is given back.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SETTINGS = ("plain", "vision frozen", "lora", "checkpointing", "bf16", "sgd")


def subject(setting: str) -> tuple[Any, Any, Any]:
    """LLaVA with 120 million parameters, a batch of 2 x 128 tokens with an image each, the optimizer."""
    import torch
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=112,
        patch_size=14,
    )
    text = LlamaConfig(
        vocab_size=4096,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        use_cache=False,
    )
    model = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=4095)
    )
    if setting == "checkpointing":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    elif setting == "lora":
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(r=8, target_modules=r".*language_model.*_proj")
        model = get_peft_model(model, adapters)
    elif setting == "bf16":
        model.to(torch.bfloat16)
    elif setting == "vision frozen":
        model.model.vision_tower.requires_grad_(False)
    model.train()
    ids = torch.randint(3, 4000, (2, 128))
    ids[:, 1:65] = 4095
    pixels = torch.randn(2, 3, 112, 112, dtype=next(model.parameters()).dtype)
    labels = ids.masked_fill(ids == 4095, -100)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learning, 1e-3) if setting == "sgd" else torch.optim.AdamW(learning, 1e-4)
    return model, {**batch, "pixel_values": pixels}, optimizer


def one(what: str, setting: str) -> None:
    """In a process of its own: prints bytes of growth, seconds and what was found as JSON."""
    import vlmdoctor
    import vlmdoctor.examine  # what it imports is not what it takes

    model, batch, optimizer = subject(setting)
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # forget the peak so far
    before, started = peak(), time.perf_counter()
    found: list[str] = []
    if what == "training":
        for _ in range(2):  # the second is where the state of the optimizer is there from the start
            model(**batch).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    else:
        report = vlmdoctor.check(model, batch, optimizer=optimizer)
        found = [finding.rule for finding in report.findings]
    print(json.dumps([peak() - before, time.perf_counter() - started, found]))


def peak() -> int:
    """Bytes: the most that this process had resident."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    print(f"{'':15}{'training':>12}{'check':>12}{'ratio':>8}{'takes':>9}")
    for setting in SETTINGS:
        told = []
        for what in ("training", "check"):
            command = [sys.executable, __file__, what, setting]
            output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            told.append(json.loads(output.stdout.splitlines()[-1]))
        (training, _, _), (check, seconds, found) = told
        sizes = f"{training / 1e6:9,.0f} MB{check / 1e6:9,.0f} MB{check / training:8.2f}"
        print(f"{setting:15}{sizes}{seconds:7.1f} s {' '.join(found)}", flush=True)


if __name__ == "__main__":
    one(*sys.argv[1:]) if len(sys.argv) > 1 else main()
