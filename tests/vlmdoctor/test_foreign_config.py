"""A folder's files ask for kernels, quantisers, downloads and code: none is loaded, what can be is judged."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from benchmarks.detection.models import make
from tests.vlmdoctor.test_folder import whole  # noqa: F401 (a fixture)
from vlmdoctor.targets.resolve import resolve

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 64,
}
KERNELS = '''
"""In the place of the real package."""
asked = []
__version__ = "0.18.2"
class _Any:
    def __init__(self, *a, **k): pass
    def __call__(self, *a, **k): return lambda x: x
    def __getattr__(self, name): return _Any()
    def __or__(self, other): return self
    def __hash__(self): return 0
CUDAProperties = Device = KernelizeFallback = LayerRepository = LocalLayerRepository = _Any
ROCMProperties = _Any
Mode = _Any()
register_kernel_mapping = replace_kernel_forward_from_hub = use_kernel_mapping = kernelize = _Any()
def use_kernel_forward_from_hub(name): return lambda cls: cls
def use_kernelized_func(*functions): return lambda cls: cls
def get_kernel(name, *a, **k):
    asked.append(str(name))
    raise FileNotFoundError(name)
'''
Change = Callable[[Path, dict[str, Any]], None]


def named(**changes: Any) -> Change:
    """Puts values into config.json."""
    return lambda folder, config: config.update(changes)


def within(part: str, **changes: Any) -> Change:
    """Puts values into a part of config.json."""
    return lambda folder, config: config[part].update(changes)


def file(name: str, text: str, **changes: Any) -> Change:
    """Writes a file into the folder too."""

    def change(folder: Path, config: dict[str, Any]) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
        config.update(changes)

    return change


def index(name: str) -> Change:
    """Weights by an index that names one file."""

    def change(folder: Path, config: dict[str, Any]) -> None:
        for weights in folder.glob("*.safetensors"):
            weights.rename(folder / "part.safetensors")
        (folder.parent / "outside.safetensors").write_bytes((folder / "part.safetensors").read_bytes())
        (folder / "part.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        text = json.dumps({"weight_map": {"a": name}})
        (folder / "model.safetensors.index.json").write_text(text)

    return change


def settings(name: str, **changes: Any) -> Change:
    """Puts values into another file of settings."""

    def change(folder: Path, config: dict[str, Any]) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, **changes}))
        (folder / "evil.py").write_text(EVIL)

    return change


EVIL = "open('ran', 'w').close()\nraise SystemExit(7)\n"
ASKED = "'evil/kernel' named in config.json was not loaded"
# name -> (folder that is changed, change, what is said: in a fact where it is judged, else after "refused:")
HOSTILE: dict[str, tuple[str, Change, str]] = {
    "attention": ("llama", named(attn_implementation="evil/kernel"), ASKED),
    "attention-private": ("llama", named(_attn_implementation="evil/kernel"), ASKED),
    "attention-internal": ("llama", named(_attn_implementation_internal="evil/kernel"), ASKED),
    "attention-dict": ("llava", named(attn_implementation={"text_config": "evil/kernel"}), ASKED),
    "attention-root": ("llava", named(_attn_implementation={"": "evil/kernel"}), ASKED),
    "attention-text": ("llava", within("text_config", attn_implementation="evil/kernel"), ASKED),
    "attention-vision": ("llava", within("vision_config", _attn_implementation="evil/kernel"), ASKED),
    "attention-paged": ("llama", named(attn_implementation="paged|evil/kernel"), "was not loaded"),
    "attention-flash": ("llama", named(attn_implementation="flash_attention_3"), "examined with sdpa"),
    "experts": ("llama", named(experts_implementation="evil/experts"), "'evil/experts' named"),
    "use-kernels": ("llama", named(use_kernels=True, kernel_config={"RMSNorm": "evil/k:X"}), "use_kernels"),
    "fusion": ("llama", named(fusion_config={"patch_embeddings": True}), "fusion_config"),
    "weights-named": ("llama", named(transformers_weights="../outside.bin"), "transformers_weights"),
    "quantised": ("bare", named(quantization_config={"quant_method": "bitsandbytes"}), "'bitsandbytes'"),
    "quantised-weights": ("llama", named(quantization_config={"quant_method": "gptq"}), "refused:quantised"),
    "trainer": ("llama", named(architectures=["Trainer", "pipeline", "AutoModel", 3, ""]), ""),
    "base-class": ("llama", named(architectures=["PreTrainedModel"]), ""),
    "method": ("llama", named(to_dict="x", get_text_config=1, __class__="y"), "would hide a method"),
    "auto-map": (
        "llama",
        file("evil.py", EVIL, auto_map={"AutoConfig": "evil.A", "AutoModel": "evil.B"}),
        "",
    ),
    "generate": ("llama", file("custom_generate/generate.py", EVIL), ""),
    "generation": ("llama", file("generation_config.json", '{"to_dict": 1, "eos_token_id": 5}'), ""),
    "adapter": (
        "llama",
        file("adapter_config.json", '{"peft_type": "LORA", "base_model_name_or_path": "evil/base"}'),
        "",
    ),
    "backbone": ("bare", named(model_type="detr", backbone="evil/net", use_timm_backbone=False), "refused:"),
    "timm": ("bare", named(model_type="timm_wrapper", architecture="hf_hub:evil/net"), "refused:an address"),
    "mamba": ("bare", named(model_type="mamba", architectures=["MambaForCausalLM"], state_size=4), ""),
    "processor-code": ("whole", settings("processor_config.json", auto_map={"AutoProcessor": "evil.P"}), ""),
    "processor-class": ("whole", settings("processor_config.json", processor_class="EvilProcessor"), ""),
    "processor-audio": (
        "whole",
        settings("processor_config.json", audio_tokenizer={"audio_tokenizer_name_or_path": "evil/a"}),
        "",
    ),
    "tokenizer-code": (
        "whole",
        settings("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.T", None]}),
        "",
    ),
    "tokenizer-class": ("whole", settings("tokenizer_config.json", tokenizer_class="EvilTokenizer"), ""),
    "tokenizer-file": ("whole", settings("tokenizer_config.json", vocab_file="/dev/zero"), ""),
    "labels": ("bare", named(num_labels=10**9), "refused:num_labels is 1000000000"),
    "layers": ("llama", named(num_hidden_layers=10**9), "refused:num_hidden_layers"),
    "outside": ("llama", index("../outside.safetensors"), "refused:no file of its own folder"),
    "absolute": ("llama", index("/etc/passwd"), "refused:no file of its own folder"),
    "pickle": ("llama", index("part.bin"), "refused:no .safetensors file"),
}


@pytest.fixture(scope="module")
def outcome(
    tmp_path_factory: pytest.TempPathFactory,
    whole: Path,  # noqa: F811
) -> dict[str, Any]:
    """What the driver says of all of them, in one process of its own."""
    place = tmp_path_factory.mktemp("foreign")
    plain = transformers.LlamaConfig(**LLAMA)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(plain).save_pretrained(place / "llama")
    plain.architectures = ["LlamaForCausalLM"]
    plain.save_pretrained(place / "bare")
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    both = transformers.LlavaConfig(
        vision_config={**vision, "image_size": 28, "patch_size": 14, "model_type": "clip_vision_model"},
        text_config={**LLAMA, "model_type": "llama"},
        image_token_index=3,
    )
    both.architectures = ["LlavaForConditionalGeneration"]
    both.save_pretrained(place / "llava")
    shutil.copytree(whole, place / "whole")
    for name, (base, change, _) in HOSTILE.items():
        folder = Path(shutil.copytree(place / base, place / f"x-{name}"))
        config = json.loads((folder / "config.json").read_text())
        change(folder, config)
        (folder / "config.json").write_text(json.dumps(config))
    packages = place / "packages"
    (packages / "kernels-0.18.2.dist-info").mkdir(parents=True)
    (packages / "kernels-0.18.2.dist-info" / "METADATA").write_text("Name: kernels\nVersion: 0.18.2\n")
    (packages / "kernels.py").write_text(KERNELS)
    driver = Path(__file__).with_name("foreign_driver.py")
    paths = [str(packages), *(p for p in sys.path if p)]
    done = subprocess.run(
        [sys.executable, driver, place / "llama", *(place / f"x-{name}" for name in HOSTILE)],
        capture_output=True,
        text=True,
        cwd=place,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(place.rglob("ran"))
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_that_a_folder_asks_for_is_loaded(outcome: dict[str, Any], name: str) -> None:
    told, said = outcome[f"x-{name}"], HOSTILE[name][2]
    assert told["seen"] == [] and told["asked"] == []
    if said.startswith("refused:"):
        assert said.removeprefix("refused:") in (told["error"] or "") and told["error"]
        assert "TRACEBACK" not in told["error"] and "\n" not in told["error"]
    else:
        assert told["error"] is None
        assert any(said in line for line in told["not_followed"]) or not said
        assert set(told["attention"]) <= {"eager", "sdpa", None}


def test_a_harmless_folder_is_followed_whole(outcome: dict[str, Any]) -> None:
    told = outcome["llama"]
    assert told["error"] is None and told["not_followed"] == [] and told["attention"] == ["sdpa"]


@pytest.mark.parametrize("name", [name for name in HOSTILE if HOSTILE[name][0] == "whole"])
def test_a_processor_s_code_is_not_run_and_a_batch_is_made(outcome: dict[str, Any], name: str) -> None:
    assert outcome[f"x-{name}"]["batch"].startswith(("two conversations", "made from the configuration"))


@pytest.mark.parametrize("kind", ["llava", "qwen2_5_vl", "gemma3", "idefics3", "gpt2", "mixtral", "detr"])
def test_a_configuration_of_transformers_own_is_changed_in_nothing(kind: str) -> None:
    from vlmdoctor.targets.config_values import cleaned

    values = transformers.AutoConfig.for_model(kind).to_dict()
    found = cleaned(values, "config.json")
    assert found.values == values and found.replaced == [] and found.quantised is None


def test_code_that_is_trusted_keeps_its_quantiser_and_no_kernel() -> None:
    from vlmdoctor.targets.config_values import cleaned

    values = {"quantization_config": {"quant_method": "awq"}, "attn_implementation": "evil/kernel"}
    found = cleaned(values, "config.json", trusted=True)
    assert found.values == {"quantization_config": {"quant_method": "awq"}, "attn_implementation": None}
    assert found.quantised is None


@pytest.mark.parametrize("kind", ["llava", "gpt2", "mixtral"])
@pytest.mark.parametrize("without", ["nothing", "dtype", "generation_config.json"])
def test_a_folder_is_loaded_as_transformers_loads_it(tmp_path: Path, kind: str, without: str) -> None:
    model = make(kind).model.to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    config = json.loads((tmp_path / "config.json").read_text())
    if without == "dtype":
        config.pop("dtype")
        (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": 3}))
    elif without != "nothing":
        (tmp_path / without).unlink(missing_ok=True)
    ours = resolve(str(tmp_path), makes_batch=False).subject.model
    theirs = type(model).from_pretrained(tmp_path)
    for one, other in (
        (ours.state_dict(), theirs.state_dict()),
        (dict(ours.named_buffers()), dict(theirs.named_buffers())),
    ):
        assert list(one) == list(other)
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert all(one[name].dtype == other[name].dtype for name in one)
    assert ours.config.to_dict() == theirs.config.to_dict()
    assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()
    assert ours.config.name_or_path == theirs.config.name_or_path == str(tmp_path)
