"""From what the user typed to a Subject, and what is said where that fails."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import transformers

from vlmdoctor.errors import UserError
from vlmdoctor.subject import Subject
from vlmdoctor.targets.resolve import resolve

LLAMA = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 32,
}


@pytest.fixture
def script(tmp_path: Path) -> Path:
    file = tmp_path / "my_model.py"
    (tmp_path / "neighbour.py").write_text("WIDTH = 4\n")
    file.write_text(
        "import torch\nfrom torch import nn\nfrom neighbour import WIDTH\nprint('hello from the script')\n\n"
        "def build():\n    return nn.Linear(WIDTH, 2)\n\n"
        "def build_pair():\n    return build(), (torch.ones(1, WIDTH),)\n\n"
        "def build_all():\n    m = build()\n"
        "    return m, (torch.ones(1, 4),), torch.optim.SGD(m.parameters())\n\n"
        "def build_subject():\n    from vlmdoctor import Subject\n"
        "    return Subject(build, trainable=['weight'])\n\n"
        "def build_with(size):\n    return nn.Linear(size, 2)\n\n"
        "def broken():\n    raise ValueError('no data in /data')\n\n"
        "def leaves():\n    raise SystemExit(3)\n\n"
        "def wrong():\n    return {'model': build()}\n\n"
        "NUMBER = 3\n"
    )
    return file


def test_what_a_factory_may_return(script: Path) -> None:
    module = resolve(f"{script}:build").subject
    assert isinstance(module.model, torch.nn.Linear) and module.batch is None
    pair = resolve(f"{script}:build_pair").subject
    assert pair.batch[0].shape == (1, 4) and pair.optimizer is None
    assert isinstance(resolve(f"{script}:build_all").subject.optimizer, torch.optim.SGD)
    subject = resolve(f"{script}:build_subject").subject
    assert isinstance(subject, Subject) and isinstance(subject.model, torch.nn.Linear)
    assert subject.trainable == ["weight"]


def test_the_search_path_is_restored_and_output_goes_to_stderr(
    script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = list(sys.path)
    resolve(f"{script}:build")
    assert sys.path == before
    captured = capsys.readouterr()
    assert captured.out == "" and "hello from the script" in captured.err


def test_a_module_of_a_package_in_the_current_folder(
    script: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package_of_this_test"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(
        "from torch import nn\n\nclass Model(nn.Linear):\n    def __init__(self):\n"
        "        super().__init__(2, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert type(resolve("package_of_this_test.models:Model").subject.model).__name__ == "Model"


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("buildd", "did you mean 'build'"),
        ("zzz", "it has build"),
        ("build_with", r"needs arguments \(size\)"),
        ("broken", r"raised ValueError: no data in /data \(.*my_model.py:\d+\)"),
        ("leaves", r"ended the program \(exit status 3\)"),
        ("wrong", "returned an object of type dict"),
        ("NUMBER", "is an object of type int, not a function"),
    ],
)
def test_a_factory_that_fails_is_one_sentence(script: Path, factory: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        resolve(f"{script}:{factory}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nothing", "there is no target 'nothing'"),
        ("no_such_package.models:build", "there is no module 'no_such_package.models'"),
        ("nowhere.py:build", "there is no file nowhere.py"),
        ("nowhere/config.json", "has no config.json"),
    ],
)
def test_what_is_not_there(target: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        resolve(target)


def test_a_file_without_a_function_lists_its_functions(script: Path) -> None:
    with pytest.raises(UserError, match=r"as in .*my_model\.py:build; it has build, build_pair"):
        resolve(str(script))


def test_invalid_python_is_located(tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text("x = 1\ndef build(:\n")
    with pytest.raises(UserError, match=r"not valid Python: .*broken\.py:2\)"):
        resolve(f"{file}:build")


def test_the_users_exception_is_kept_for_verbose_output(script: Path) -> None:
    with pytest.raises(UserError) as caught:
        resolve(f"{script}:broken")
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_checkpoint_with_weights_and_one_without(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**LLAMA)
    model = transformers.LlamaForCausalLM(config)
    model.save_pretrained(tmp_path / "full")
    loaded = resolve(str(tmp_path / "full"))
    assert loaded.facts["weights"] == "safetensors"
    assert torch.equal(loaded.subject.model.lm_head.weight, model.lm_head.weight)
    assert loaded.subject.batch["input_ids"].shape == (2, 16)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(tmp_path / "bare")
    for target in (tmp_path / "bare", tmp_path / "bare" / "config.json"):
        assert resolve(str(target)).facts["weights"] == "random"


def test_building_from_a_config_leaves_the_random_state_alone(tmp_path: Path) -> None:
    transformers.LlamaConfig(**LLAMA, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    before = torch.get_rng_state()
    resolve(str(tmp_path))
    assert torch.equal(before, torch.get_rng_state())


def test_pickles_are_never_loaded(tmp_path: Path) -> None:
    transformers.LlamaConfig(**LLAMA, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    marker = tmp_path / "it_ran"
    (tmp_path / "pytorch_model.bin").write_bytes(f"cos\nsystem\n(S'touch {marker}'\ntR.".encode())
    target = resolve(str(tmp_path))
    assert "pickle and was not loaded" in target.facts["weights"]
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "can't be read as JSON"),
        ("[]", "holds no JSON object"),
        ('{"model_type": "no_such_model"}', "makes no model configuration"),
        ("{}", "makes no model configuration"),
        (
            json.dumps(
                {**LLAMA, "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": -4}
            ),
            "can't be built|makes no model",
        ),
    ],
)
def test_a_config_with_nonsense_is_one_sentence(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        resolve(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_cut_short_is_one_sentence(tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA))
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="can't be loaded"):
        resolve(str(tmp_path))


def test_code_in_a_checkpoint_needs_trust(tmp_path: Path) -> None:
    marker = tmp_path / "it_ran"
    (tmp_path / "configuration_own.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "own_kind", "auto_map": {"AutoConfig": "configuration_own.OwnConfig"}})
    )
    with pytest.raises(UserError, match="--trust-remote-code"):
        resolve(str(tmp_path))
    assert not marker.exists()
