"""Time and memory of the dry run: against size, and over every family that transformers has.

    python benchmarks/dry_run.py sizes      # Qwen2.5-VL and LLaVA at full size, and a trillion parameters
    python benchmarks/dry_run.py families   # one step of every image-text-to-text family

Each line: the model, its parameters, seconds to lay it out, seconds of forward and backward, and the peak
memory of the process so far.
"""

from __future__ import annotations

import resource
import sys
import time
import warnings
from typing import Any

import torch
import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.shapes import shapes_of
from vlmdoctor.targets.synthetic import batch_for, consistent


def trillion() -> Any:
    """LLaVA with a language model of a trillion parameters."""
    config = transformers.LlavaConfig()
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 25600, 102400, 96
    text.num_attention_heads = text.num_key_value_heads = 200
    text.head_dim = 128
    return config


SIZES = {
    "llava": transformers.LlavaConfig,
    "qwen2_vl": transformers.Qwen2VLConfig,
    "qwen2_5_vl": transformers.Qwen2_5_VLConfig,
    "a trillion": trillion,
}


def one(name: str, make: Any) -> str:
    """One line on one model."""
    started = time.perf_counter()
    try:
        config = consistent(make())
        model_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
        with torch.device("meta"):
            model = model_class._from_config(config)
        batch = batch_for(model, batch_size=1)
        built = time.perf_counter() - started
        shapes = shapes_of(model, batch, dtype=torch.bfloat16)
    except Unavailable as reason:
        return f"{name:24} not carried: {reason}"
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{name:24} not built: {type(error).__name__}: {first[:90]}"
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    outcome = "" if shapes.failure is None else f"  raises {shapes.failure.message.splitlines()[0][:90]}"
    return (
        f"{name:24} {shapes.parameters / 1e9:8.1f} B  {built:5.1f} s  {shapes.seconds:5.1f} s  "
        f"{memory:5.2f} GB{outcome}"
    )


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    what = sys.argv[1] if len(sys.argv) > 1 else "sizes"
    chosen = SIZES
    if what == "families":
        chosen = {name: CONFIG_MAPPING[name] for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES}
    started = time.perf_counter()
    for name, make in chosen.items():
        print(one(name, make), flush=True)
    print(f"{time.perf_counter() - started:.1f} s altogether")


if __name__ == "__main__":
    main()
