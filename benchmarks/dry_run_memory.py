"""The dry run's bytes against the memory of real processes, and its own time and memory against size.

    python benchmarks/dry_run_memory.py real            # resident memory of real training steps on this CPU
    python benchmarks/dry_run_memory.py accelerate      # beside what accelerate's estimate-memory says
    python benchmarks/dry_run_memory.py sizes           # 0.1 billion to a trillion parameters
    python benchmarks/dry_run_memory.py sizes --plot sizes.png

Every line comes from a process of its own. `real` trains models of some tens to hundreds of MB for two steps
and takes what the operating system says the process grew by; allocations are kept apart from each other
(`MALLOC_MMAP_THRESHOLD_`), so that what was freed is given back.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

TEXT = {"vocab_size": 4096, "intermediate_size": 1536, "num_hidden_layers": 8, "pad_token_id": 0}
RIVALS = ("language model, 31 M", "LLaVA, 38 M", "LLaVA 7B")
SETTINGS = ("plain", "checkpointing", "lora", "bf16", "amp", "sgd")
# Width, layers: language models behind LLaVA's tower.
SIZES = {
    "0.5 B": (1024, 24),
    "1.5 B": (2048, 24),
    "7 B": (4096, 32),
    "13 B": (5120, 40),
    "70 B": (8192, 80),
    "400 B": (16384, 124),
    "1 T": (25600, 96),
}


def language_model(setting: str) -> tuple[Any, Any]:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**TEXT, hidden_size=512, num_attention_heads=8, use_cache=False)
    model = transformers.LlamaForCausalLM(config)
    if setting == "checkpointing":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    elif setting == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))
    elif setting == "bf16":
        model.to(torch.bfloat16)
    model.train()
    ids = torch.randint(3, 4096, (4, 256))
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def resident() -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()


def one_real(setting: str) -> dict[str, float]:
    """What the process grew by while it trained, and what the dry run says."""
    return compared(*language_model(setting), setting)


def compared(model: Any, batch: Any, setting: str = "plain") -> dict[str, float]:
    """What training of a real model said and took, in bytes."""
    import torch

    from vlmdoctor.dryrun.meta_copy import meta_copy
    from vlmdoctor.dryrun.optimizers import optimizer_bytes
    from vlmdoctor.dryrun.step import dry_step

    small = torch.nn.Linear(8, 8)  # so that libraries are loaded before anything is measured
    small(torch.randn(4, 8)).sum().backward()
    lower = torch.bfloat16 if setting == "amp" else None
    kind = "sgd" if setting == "sgd" else "adamw"
    step = dry_step(meta_copy(model), batch, device="cpu", autocast=lower)
    learning = [p for p in model.parameters() if p.requires_grad]
    state, temporary = optimizer_bytes(kind, learning)
    gradients = sum(p.nbytes for p in learning)
    own = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    said = own + state + max(step.peak, gradients + temporary)
    before = resident()
    optimizer_class = torch.optim.SGD if setting == "sgd" else torch.optim.AdamW
    optimizer = optimizer_class(learning, lr=1e-4, foreach=True)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=setting == "amp"):
            loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"said": said, "took": most - before + own}


def one_rival(name: str) -> dict[str, float]:
    """What accelerate's estimate says of training with Adam in float32, the dry run, and a real process."""
    import torch
    import transformers
    from accelerate.commands.estimate import estimate_training_usage
    from accelerate.utils import calculate_maximum_sizes

    from vlmdoctor.dryrun.cost import cost_of
    from vlmdoctor.dryrun.measure import measure
    from vlmdoctor.dryrun.plan import Plan
    from vlmdoctor.subject import Subject
    from vlmdoctor.targets.synthetic import batch_for

    def estimated(model: Any) -> int:
        return max(estimate_training_usage(calculate_maximum_sizes(model)[0], "float32").values())

    if name == "LLaVA 7B":
        config = transformers.LlavaConfig()
        config.text_config.vocab_size = 32064
        with torch.device("meta"):
            model = transformers.LlavaForConditionalGeneration._from_config(config, dtype=torch.float32)
        cost = cost_of(measure(Subject(model, batch=batch_for(model, batch_size=1)), Plan()))
        return {"estimated": estimated(model), "said": cost.peak, "took": 0}
    if name.startswith("LLaVA"):
        text = {**TEXT, "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 8}
        vision = {"model_type": "clip_vision_model", "hidden_size": 256, "intermediate_size": 1024}
        vision |= {"num_hidden_layers": 8, "num_attention_heads": 4, "image_size": 224, "patch_size": 14}
        torch.manual_seed(0)
        config = transformers.LlavaConfig(
            vision_config=vision,
            text_config={"model_type": "llama", "use_cache": False, **text},
            image_token_index=4095,
        )
        model = transformers.LlavaForConditionalGeneration(config).train()
        batch = batch_for(model, batch_size=4)
    else:
        model, batch = language_model("plain")
    return {"estimated": estimated(model), **compared(model, batch)}


def one_size(name: str) -> dict[str, float]:
    """Parameters, seconds and memory of one dry step."""
    import torch
    import transformers

    from vlmdoctor.probes.dry_run.shapes import shapes_of
    from vlmdoctor.targets.synthetic import batch_for, consistent

    width, layers = SIZES[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    config = transformers.LlavaConfig()
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = width, 4 * width, layers
    text.num_attention_heads = text.num_key_value_heads = width // 128
    text.head_dim = 128
    config = consistent(config)
    with torch.device("meta"):
        model = transformers.LlavaForConditionalGeneration._from_config(config)
    started = time.process_time()
    shapes = shapes_of(model, batch_for(model), dtype=torch.bfloat16)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {
        "parameters": shapes.parameters,
        "seconds": time.process_time() - started,
        "memory": after,
        "more": after - before,
    }


def apart(what: str, name: str) -> dict[str, float]:
    """The measure of `name`, by a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--one", what, name],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def plot(rows: list[dict[str, float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    sizes = [row["parameters"] for row in rows]
    for axes, key, label in ((left, "seconds", "processor seconds"), (right, "memory", "peak memory, GB")):
        axes.semilogx(sizes, [row[key] for row in rows], marker="o")
        axes.set(xlabel="parameters", ylabel=label, ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.suptitle("Forward and backward of LLaVA without its weights")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("real", "accelerate", "sizes"), nargs="?", default="real")
    parser.add_argument("--plot", metavar="FILE.png", help="draw the sizes")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "NAME"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    if given.one:
        what, name = given.one
        print(json.dumps({"real": one_real, "accelerate": one_rival, "sizes": one_size}[what](name)))
    elif given.what == "real":
        for setting in SETTINGS:
            found = apart("real", setting)
            print(
                f"{setting:14} said {found['said'] / 1e6:6.0f} MB  took {found['took'] / 1e6:6.0f} MB  "
                f"{found['said'] / found['took'] - 1:+.1%}",
                flush=True,
            )
    elif given.what == "accelerate":
        for name in RIVALS:
            found = apart("accelerate", name)
            took = f"took {found['took'] / 1e6:7.0f} MB" if found["took"] else "no real run"
            print(
                f"{name:20} estimated {found['estimated'] / 1e6:7.0f} MB  "
                f"said {found['said'] / 1e6:7.0f} MB  {took}",
                flush=True,
            )
    else:
        rows = []
        for name in SIZES:
            rows.append(found := apart("sizes", name))
            print(
                f"{name:6} {found['parameters'] / 1e9:7.1f} B  {found['seconds']:5.1f} s  "
                f"{found['memory']:5.2f} GB, {found['more']:.2f} more than the libraries",
                flush=True,
            )
        if given.plot:
            plot(rows, given.plot)


if __name__ == "__main__":
    main()
