"""Configurations: `config.json` of many model types with wrong, missing, huge and foreign values."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

from benchmarks.hostile.harness.bases import MODEL, TEXT_MODEL, configurations
from benchmarks.hostile.harness.mutate import dumped, mutated, spoiled_text, value
from benchmarks.hostile.harness.texts import text
from benchmarks.hostile.harness.trial import Base, Content, Fifo, Link, Sparse, Trial, numbered

NAME = "config"
WEIGHT = 1.5

# Fields by which a configuration chooses code, a file, a service, or a class.
_POWERFUL: dict[str, tuple[Any, ...]] = {
    "_attn_implementation": (
        "evil/kernel",
        "kernels-community/flash-attn",
        "flash_attention_2",
        "paged|sdpa",
        5,
        {},
    ),
    "attn_implementation": ("evil/kernel", "hostile/kernel@main:x", ["sdpa"]),
    "_attn_implementation_internal": ("evil/kernel",),
    "_experts_implementation": ("evil/kernel", "grouped_mm", 3),
    "experts_implementation": ("evil/kernel",),
    "auto_map": (
        {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        {"AutoConfig": "hostile/repo--evil.Config"},
        {"AutoModelForImageTextToText": "../../evil.Model"},
        [],
        {"AutoConfig": 5},
        "evil.Config",
    ),
    "custom_pipelines": ({"x": {"impl": "evil.Pipe", "pt": ["AutoModel"]}},),
    "quantization_config": (
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        {"quant_method": "gptq", "bits": 4},
        {"quant_method": "awq", "bits": 4},
        {"quant_method": "compressed-tensors", "config_groups": {}},
        {"quant_method": "quark"},
        {"quant_method": "torchao", "quant_type": "int4"},
        {"quant_method": "fp8"},
        {"quant_method": "mxfp4"},
        {"quant_method": "finegrained_fp8"},
        {"quant_method": "evil"},
        {"quant_method": None},
        {},
        [],
        "int4",
    ),
    "architectures": (
        ["Pipeline"],
        ["pipeline"],
        ["AutoModel"],
        ["AutoTokenizer"],
        ["Trainer"],
        ["TrainingArguments"],
        ["__class__"],
        ["utils"],
        ["PreTrainedModel"],
        ["LlamaConfig"],
        ["BertModel"],
        ["GenerationMixin"],
        ["dynamic_module_utils"],
        ["load_tool"],
        ["os"],
        ["logging"],
        [None],
        [5],
        [[]],
        "LlamaForCausalLM",
        {},
        [],
        ["\x1b[2J"],
        ["evil/../x"],
        ["__getattr__"],
    ),
    "model_type": (
        "evil",
        "",
        None,
        5,
        [],
        "\x1b[2J",
        "../llama",
        "auto",
        "llama\n::error::hostile",
        "bert",
        "timm_wrapper",
    ),
    "transformers_version": ("99.0", None, [], "\x1b[31m"),
    "torch_dtype": ("float128", "os.system", "bfloat16", 5, "int8", None, "float8_e4m3fn"),
    "dtype": ("float128", "nothing", {"text_config": "x"}, "float16"),
    "_name_or_path": ("hostile/repo", "http://hostile.invalid", "../../bait"),
    "name_or_path": ("hostile/repo",),
    "base_model_name_or_path": ("hostile/repo",),
    "backbone": ("resnet50", "hostile/timm"),
    "use_timm_backbone": (True,),
    "use_pretrained_backbone": (True,),
    "rope_scaling": (
        {"type": "evil"},
        {"rope_type": "yarn", "factor": -1},
        {"rope_type": "longrope"},
        5,
        {"factor": float("nan")},
    ),
    "rope_parameters": ({"rope_type": "evil"}, {"rope_theta": 0}, {"rope_theta": "x"}, None),
    "hidden_act": ("evil", None, "\x1b[2J", "os.system", 5),
    "tp_plan": ("auto", {"x": "evil"}),
    "is_encoder_decoder": (True, "x"),
    "tie_word_embeddings": ("x", None, True),
    "vocab_size": (0, -1, 1, 2**31, 2**62, 10**12, "x", 1.5),
    "hidden_size": (0, -1, 1, 3, 2**31, 10**9, "x", 64.0, True),
    "num_hidden_layers": (0, -1, 10**6, 10**9, "x", 2.5),
    "num_attention_heads": (0, -1, 3, 10**9, "x"),
    "max_position_embeddings": (0, -1, 1, 10**12, "x"),
    "image_size": (0, -1, 1, 10**6, [], [0, 0], "x", {"height": 1}),
    "patch_size": (0, -1, 10**6, [], "x"),
    "image_token_id": (-1, 10**9, None, "x", [1]),
    "image_token_index": (-1, 10**9, None, "x"),
    "pad_token_id": (-1, 10**9, "x", [0]),
    "text_config": (
        None,
        {},
        [],
        "x",
        {"model_type": "evil"},
        {"model_type": "llava"},
        {"model_type": "clip"},
    ),
    "vision_config": (
        None,
        {},
        [],
        "x",
        {"model_type": "evil"},
        {"model_type": "llama"},
        {"model_type": "timm_wrapper"},
    ),
    "layer_types": ([], ["evil"], None, ["full_attention"] * 1000),
    "id2label": ({"0": "\x1b[2J"}, [], {str(i): "x" for i in range(1000)}, "x"),
    "num_labels": (10**9, -1, "x"),
    "pruned_heads": ({"0": [0]}, {"99": [99]}, [], "x"),
    "chunk_size_feed_forward": (-1, 10**9, "x"),
    "use_return_dict": (False,),
    "return_dict": (False, "x"),
    "torchscript": (True,),
    "output_attentions": (True,),
    "gradient_checkpointing": (True, "x"),
    "problem_type": ("evil",),
    "__class__": ("x",),
    "__dict__": ({},),
    "to_dict": ("x", None),
    "get_text_config": ("x", None),
    "from_pretrained": (None, "x"),
    "attribute_map": ({"hidden_size": "hidden_size"}, {"a": "b"}, None),
    "sub_configs": ({}, {"text_config": "os"}, None),
    "keys_to_ignore_at_inference": (5, []),
    "base_config_key": ("x",),
    "_commit_hash": ("x", 5),
    "tokenizer_class": ("evil", "os", "../x", 5),
    "processor_class": ("evil", 5),
}
_CODE = (
    *("_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation"),
    *("auto_map", "quantization_config", "architectures", "model_type"),
)
_EVIL = b"open('EXECUTED', 'w').close()\nclass Config: pass\nclass Model: pass\n"
_GPUS = ("h100", "a100-40", "4090", "t4")


def inputs(seed: int, count: int) -> Iterator[Trial]:
    """Configurations from a seed."""
    return numbered(NAME, _one, seed, count)


def _one(rng: random.Random, index: int) -> Trial:
    name, config = rng.choice(list(configurations().items()))
    raw = dumped(rng, _changed(rng, copy.deepcopy(config)))
    return trial_of(rng, raw, f"a configuration of {name}")


def _changed(rng: random.Random, config: dict[str, Any]) -> Any:
    match rng.randrange(8):
        case 0:
            return mutated(rng, config, rng.choice((1, 2, 8)))
        case 1:
            place = _part(rng, config)
            place[rng.choice(list(place) or ["a"])] = value(rng)
        case 2:
            place = _part(rng, config)
            place.pop(rng.choice(list(place) or ["a"]), None)
        case 3:
            for _ in range(rng.choice((1, 2, 5))):
                _part(rng, config)[text(rng)] = value(rng)
        case 4:
            # Alone and at the top, where nothing else ends the reading before it.
            field = rng.choice(_CODE)
            config[field] = copy.deepcopy(rng.choice(_POWERFUL[field]))
        case _:
            for _ in range(rng.choice((1, 1, 2))):
                field = rng.choice(list(_POWERFUL))
                _part(rng, config)[field] = copy.deepcopy(rng.choice(_POWERFUL[field]))
    return config


def _part(rng: random.Random, config: dict[str, Any]) -> dict[str, Any]:
    parts = [config, config, *(part for part in config.values() if isinstance(part, dict))]
    return rng.choice(parts)


def trial_of(rng: random.Random, raw: bytes, what: str) -> Trial:
    """A command that reads the bytes as a configuration: alone, in a folder, or with weights beside it."""
    files: dict[str, Content] = {"in/evil.py": _EVIL, "in/evil/__init__.py": _EVIL}
    match rng.randrange(8):
        case 0:
            files |= {"in/model/config.json": raw, "in/model/evil.py": _EVIL}
            argv = ["check", "model", "--depth", "static"]
        case 1:
            files |= {"in/config.json": raw}
            argv = ["check", "config.json", "--gpu", rng.choice(_GPUS)]
        case 2:
            base = rng.choice((MODEL, TEXT_MODEL))
            files |= {"in/model": Base(base), "in/model/config.json": raw}
            argv = ["check", "model", *rng.choice(((), ("--depth", "static"), ("--budget", "2")))]
        case 3:
            files |= {"in/model/config.json": raw, "in/model/evil.py": _EVIL}
            argv = [rng.choice(("look", "init")), "model", *rng.choice(((), ("--verbose",)))]
            argv += ["--dry-run"] if argv[0] == "init" else []
        case 4:
            other = rng.choice(
                ("preprocessor_config.json", "processor_config.json", "generation_config.json")
            )
            files |= {"in/model": Base(MODEL), f"in/model/{other}": raw}
            argv = ["check", "model", "--depth", "static"]
        case 5:
            odd: Content = rng.choice(
                (Fifo(), Link("/dev/zero"), Link("config.json"), Sparse(3 << 30, raw), spoiled_text(rng, raw))
            )
            files |= {"in/model/config.json": odd}
            argv = ["check", "model"]
        case _:
            files |= {"in/config.json": raw, "in/model.py": _EVIL}
            argv = ["check", "config.json"]
    if argv[0] == "check" and rng.random() < 0.4:
        argv += ["--output-format", rng.choice(("json", "html", "sarif", "junit", "concise"))]
    return Trial(what=what, argv=tuple(argv), files=files, env={"GITHUB_ACTIONS": "true"})
