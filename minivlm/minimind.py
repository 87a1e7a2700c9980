"""Importing published MiniMind-V weights (.pth), key for key, with a report per module.

Three generations of names are known (source: jingyaogong/minimind-v, model/model_vlm.py and what its trainers
save: half precision, without the vision encoder):

    2025       model.layers.0.self_attn.q_proj.weight   vision_proj.vision_proj.0.weight   (minimind-v)
    2026       the same, with q_norm and k_norm         vision_proj.mlp.1.weight           (minimind-3v)
    2024       layers.0.attention.wq.weight             vision_proj.vision_proj.0.weight   (minimind-v)

The oldest turns neighbouring pairs (x[2i], x[2i + 1]) by their rotary angle, where ours turns
(x[i], x[i + H / 2]); the rows of its query and key matrices are put in our order, which changes no score.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minivlm.config import MiniVLMConfig
from minivlm.errors import UserError, reason_of
from minivlm.factory import build, configuration, with_overrides
from minivlm.model import MiniVLMForConditionalGeneration
from minivlm.presets import preset
from minivlm.vision import library_settings

ENOUGH = 0.95
"""The share of a part's weights below which an import is refused; without its projector a model is blind."""

PRESETS = ("minimind-v", "minimind-3v")
KINDS = ("matched", "missing", "mismatched", "unexpected")
EMBEDDING = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"

# Tables that can be computed, and wrappers that training adds to the names.
COMPUTED = re.compile(r"(^|\.)(freqs_cos|freqs_sin|pos_cis|mask|inv_freq)$")
WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
RENAMES = (
    (r"^(?:model\.)?vision_proj\.(?:vision_proj\.|mlp\.)?(\d+)\.", r"model.vision_proj.layers.\1."),
    (r"^tok_embeddings\.", "model.language_model.embed_tokens."),
    (r"^output\.", "lm_head."),
    (r"^layers\.(\d+)\.attention\.w([qkvo])\.", r"model.language_model.layers.\1.self_attn.\2_proj."),
    (r"^layers\.(\d+)\.attention_norm\.", r"model.language_model.layers.\1.input_layernorm."),
    (r"^layers\.(\d+)\.ffn_norm\.", r"model.language_model.layers.\1.post_attention_layernorm."),
    (r"^layers\.(\d+)\.feed_forward\.w1\.", r"model.language_model.layers.\1.mlp.gate_proj."),
    (r"^layers\.(\d+)\.feed_forward\.w2\.", r"model.language_model.layers.\1.mlp.down_proj."),
    (r"^layers\.(\d+)\.feed_forward\.w3\.", r"model.language_model.layers.\1.mlp.up_proj."),
    (r"^norm\.", "model.language_model.norm."),
    (r"^model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
)


@dataclass(frozen=True)
class ModuleReport:
    """What a file brought for one module: names, and `(name, wanted, found)` where shapes differ."""

    name: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]


@dataclass(frozen=True)
class Report:
    """What became of every weight; printed, it is a table with one line per module."""

    path: str
    preset: str
    modules: tuple[ModuleReport, ...]
    notes: tuple[str, ...] = ()

    def count(self, kind: str) -> int:
        """How many weights are `matched`, `missing`, `unexpected` or `mismatched`."""
        return sum(len(getattr(module, kind)) for module in self.modules)

    @property
    def wanted(self) -> int:
        """How many weights the model has outside its vision encoder."""
        return self.count("matched") + self.count("missing") + self.count("mismatched")

    @property
    def share(self) -> float:
        """The matched share of the wanted weights, from 0 to 1."""
        return self.count("matched") / self.wanted

    @property
    def poorest(self) -> tuple[str, float]:
        """The part (projector, language model or head) of which the least matched, and that share.

        What the model has no place for counts, too: without half of its layers a decoder is broken.
        """
        matched, everything = Counter[str](), Counter[str]()
        for module in self.modules:
            part = module.name.split(".")[0]
            matched[part] += len(module.matched)
            everything[part] += sum(len(getattr(module, kind)) for kind in KINDS)
        part = min(everything, key=lambda part: matched[part] / everything[part])
        return part, matched[part] / everything[part]

    def __str__(self) -> str:
        lines = [
            f"{self.path} as {self.preset}: {self.summary()}",
            f"  {'module':<32}" + "".join(f"{kind:>12}" for kind in KINDS),
        ]
        for module in self.modules:
            lines.append(f"  {module.name:<32}" + "".join(f"{len(getattr(module, k)):>12}" for k in KINDS))
            lines += [f"    missing: {name}" for name in module.missing]
            lines += [f"    unexpected: {name}" for name in module.unexpected]
            lines += [
                f"    mismatched: {name} is {list(found)}, should be {list(wanted)}"
                for name, wanted, found in module.mismatched
            ]
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])

    def summary(self) -> str:
        """The counts in one line, with an example of each kind that is not well."""
        parts = [f"{self.count('matched')} of {self.wanted} weights matched ({self.share:.1%})"]
        for kind in ("missing", "unexpected"):
            names = [name for module in self.modules for name in getattr(module, kind)]
            if names:
                parts.append(f"{len(names)} {kind} such as {names[0]}")
        if differing := [entry for module in self.modules for entry in module.mismatched]:
            name, wanted, found = differing[0]
            parts.append(
                f"{len(differing)} of another shape such as {name} ({list(found)}, should be {list(wanted)})"
            )
        return ", ".join(parts)


def import_minimind(
    path: str | Path,
    preset: str = "minimind-v",
    out: str | Path | None = None,
    *,
    vision_from: str | None = None,
    tokenizer: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Report:
    """Makes a checkpoint folder of published weights.

    Args:
        path: The .pth file; a resume file of MiniMind-V's trainers will do, too.
        preset: `minimind-v` or `minimind-3v`.
        out: The folder to write; None only reports.
        vision_from: CLIP or SigLIP checkpoint for the vision encoder, which MiniMind-V does not save.
        tokenizer: Folder of MiniMind's tokenizer, which the file does not hold either.
        overrides: Fields of the configuration to change, for weights trained with other sizes.
        seed: Seed of what the file does not bring.

    Raises:
        UserError: The file can't be read, holds something else, or brings less than 95 % of the projector's,
            the language model's or the head's weights.
    """
    if preset not in PRESETS:
        raise UserError(f"'{preset}' is no preset of MiniMind-V; it is {' or '.join(PRESETS)}.")
    found = read(Path(path))
    config = config_of(preset, overrides, vision_from)
    weights = renamed(found, config)
    report = compare(weights, config, str(path), preset)
    part, share = report.poorest
    if share < ENOUGH:
        better = [other for other in PRESETS if other != preset and fits(found, other)]
        hint = f"it fits the preset '{better[0]}'" if better else "give the preset it was trained with"
        if not any("vision_proj" in name for name in found):
            hint = "it has no projector: it is a language model alone"
        raise UserError(
            f"{path} does not fit the preset '{preset}', of whose {part} only {share:.0%} matched: "
            f"{report.summary()}; {hint}."
        )
    changes = dict(overrides or {})
    if {EMBEDDING, HEAD} <= weights.keys() and not torch.equal(weights[EMBEDDING], weights[HEAD]):
        changes["tie_word_embeddings"] = False
    report = Report(
        report.path, preset, report.modules, tuple(remarks(found, changes, vision_from, tokenizer))
    )
    if out is not None:
        model, processor = build(preset, changes, vision_from=vision_from, tokenizer=tokenizer, seed=seed)
        fill(model, weights, {name for module in report.modules for name in module.matched})
        save(model, processor, Path(out))
    return report


def read(path: Path) -> dict[str, Tensor]:
    """The weights in a file by their names there; nothing in the file is ever executed."""
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    try:
        # Mapped, not read: the weights are copied once, straight into the model.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        # A broken file can raise anything; one with code in it raises UnpicklingError and names the function.
        code = re.search(
            r"(?:Unsupported|GLOBAL|global:?) (?:GLOBAL )?([\w.]+) was not an allowed", str(error)
        )
        if isinstance(error, pickle.UnpicklingError) and code:
            raise UserError(
                f"{path} holds more than weights (it would call {code[1]}) and was not opened; save its "
                f"state_dict alone."
            ) from error
        reason = reason_of(error)
        raise UserError(f"{path} can't be read as weights: {reason}") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("model"), Mapping):
        loaded = loaded["model"]  # a trainer's resume file
    if not isinstance(loaded, Mapping):
        raise UserError(f"{path} holds a {type(loaded).__name__}, no weights by name.")
    weights = {WRAPPERS.sub("", str(k)): v for k, v in loaded.items() if isinstance(v, Tensor)}
    if not weights:
        raise UserError(f"{path} holds no weights by name.")
    if any(".experts." in name for name in weights):
        raise UserError(
            f"{path} holds a mixture of experts, which minivlm does not have; give a dense model."
        )
    return weights


def config_of(
    name: str, overrides: Mapping[str, Any] | None = None, vision_from: str | None = None
) -> MiniVLMConfig:
    """The configuration of a preset with the sizes of another vision encoder and the user's changes."""
    tower = library_settings(vision_from) if vision_from is not None else {}
    return configuration(with_overrides({**preset(name).model, **tower}, overrides or {}))


def renamed(found: Mapping[str, Tensor], config: MiniVLMConfig) -> dict[str, Tensor]:
    """The weights under our names; what we don't know keeps its own."""
    oldest = "tok_embeddings.weight" in found
    weights = {}
    for name, tensor in found.items():
        if COMPUTED.search(name) or name.startswith("vision_encoder."):
            continue
        ours = name
        for pattern, replacement in RENAMES:
            ours, changed = re.subn(pattern, replacement, name)
            if changed:
                break
        if oldest and ours.endswith(("q_proj.weight", "k_proj.weight")):
            tensor = halves_from_pairs(tensor, config.head_dim)
        weights[ours] = tensor
    return weights


def halves_from_pairs(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of each head from the order (0, 1), (2, 3), … to 0, 2, …, 1, 3, …; weight [heads * H, D]."""
    rows, width = weight.shape
    if rows % head_dim:
        return weight  # of another size altogether, as the report will say
    return weight.view(-1, head_dim // 2, 2, width).transpose(1, 2).reshape(rows, width)


def compare(weights: Mapping[str, Tensor], config: MiniVLMConfig, path: str, name: str) -> Report:
    """Which of the model's weights outside its vision encoder are there, with the right shape."""
    with torch.device("meta"):
        model = MiniVLMForConditionalGeneration(config)
    wanted = {
        key: tuple(value.shape)
        for key, value in model.state_dict().items()
        if not key.startswith("model.vision_encoder.")
    }
    tied = {EMBEDDING: HEAD, HEAD: EMBEDDING} if config.tie_word_embeddings else {}
    here = {key: weights.get(key, weights.get(tied.get(key, ""))) for key in wanted}
    modules = []
    for module in ordered(map(module_of, [*wanted, *weights])):
        keys = [key for key in wanted if module_of(key) == module]
        right = [key for key in keys if here[key] is not None and here[key].shape == wanted[key]]
        modules.append(
            ModuleReport(
                module,
                matched=tuple(right),
                missing=tuple(key for key in keys if here[key] is None),
                unexpected=tuple(k for k in weights if k not in wanted and module_of(k) == module),
                mismatched=tuple(
                    (key, wanted[key], tuple(here[key].shape))
                    for key in keys
                    if here[key] is not None and key not in right
                ),
            )
        )
    return Report(path, name, tuple(modules))


def fits(found: Mapping[str, Tensor], name: str) -> bool:
    """Whether weights are those of a preset."""
    config = config_of(name)
    return compare(renamed(found, config), config, "", name).poorest[1] >= ENOUGH


def module_of(name: str) -> str:
    """The line of the report that a weight belongs to, such as `language_model.layers.3`."""
    parts = name.removeprefix("model.").split(".")
    if parts[0] == "language_model":
        return ".".join(parts[:3] if parts[1] == "layers" else parts[:2])
    return parts[0]


def ordered(names: Iterable[str]) -> list[str]:
    """Each name once, in the order of its first appearance."""
    return list(dict.fromkeys(names))


def remarks(
    found: Mapping[str, Tensor], changes: Mapping[str, Any], vision_from: str | None, tokenizer: str | None
) -> Iterable[str]:
    """What the user should know beyond the counts."""
    if vision_from is not None:
        yield f"vision encoder: from {vision_from}."
    else:
        yield (
            "vision encoder: fresh weights, so the model can't see yet; give the CLIP or SigLIP checkpoint "
            "that it was trained with (--vision-from)."
        )
    if any(name.startswith("vision_encoder.") for name in found):
        yield "the file's own weights of a vision encoder are not used."
    if tokenizer is None:
        yield (
            "tokenizer: the bundled one, whose words are not those of these weights; give the folder of "
            "MiniMind's (--tokenizer)."
        )
    if changes.get("tie_word_embeddings") is False:
        yield "the head is not tied to the embeddings: the file holds two different matrices."


@torch.no_grad()
def fill(model: MiniVLMForConditionalGeneration, weights: Mapping[str, Tensor], names: set[str]) -> None:
    """Copies the matched weights into the model."""
    for name, parameter in model.state_dict().items():
        if name not in names:
            continue
        value = weights.get(name)
        if value is None:
            continue  # the other name of a tied matrix
        if name in (EMBEDDING, HEAD):
            # The tokenizer may have more entries than the file: placeholders, which are never predicted.
            parameter[len(value) :] = 0
        parameter[: len(value)].copy_(value)


def save(model: MiniVLMForConditionalGeneration, processor: Any, out: Path) -> None:
    """Writes the checkpoint folder; raises `UserError` where that can't be done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(out)
        processor.save_pretrained(out)
    except OSError as error:
        raise UserError(f"the folder {out} can't be written: {error.strerror or error}.") from error
