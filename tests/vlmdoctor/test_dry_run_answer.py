"""What a dry run opens with: the answer, and parts of the memory that add up to the number in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import families
import pytest
import snapshot
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dry_run import check, tiny_llava, written
from torch import nn

from vlmdoctor.dryrun.cost import cost_of, fits, is_uncertain
from vlmdoctor.dryrun.measure import measure
from vlmdoctor.dryrun.plan import Plan
from vlmdoctor.evidence.fit import Fit
from vlmdoctor.knowledge.gpus import CUDA_RESERVED, GpuModel
from vlmdoctor.report import Report
from vlmdoctor.reporters import full, html, markdown
from vlmdoctor.reporters.dry_run import dry_run_html
from vlmdoctor.reporters.dry_run_answer import PARTS, amount, answer_of, parts_of, spans
from vlmdoctor.rules.perf.gpu_too_small import gpu_too_small
from vlmdoctor.subject import Subject

GB = 10**9
NEEDS = {"weights": 28_254_000_000, "optimizer": 56_400_000_000, "gradients": 28_200_000_000}
NEEDS |= {"temporary": 28_200_000_000}
LORA = {
    "weights": 14_310_000_000,
    "optimizer": 375_800_000,
    "activations": 330_100_000,
    "temporary": 84_100_000,
}
RANK = {"weights": 441_500_000, "gathered": 971_000_000, "optimizer": 881_400_000, "gradients": 31_000_000}
RANK |= {"activations": 3_874_000_000, "temporary": 1_901_000_000}
OVER_THE_STEP = {"parameters": 28_254_000_000, "gradients": 28_200_000_000, "optimizer": 56_400_000_000}
OVER_THE_STEP |= {"activations": 7_700_000_000}
BATCH = {"size": 22, "confirmed": True, "limit": False}


def facts(at_peak: Mapping[str, int], gpu: Mapping[str, Any] | None = None, **cost: Any) -> dict[str, Any]:
    """What a dry run of LLaVA 7B gives, without its tables."""
    peak = sum(at_peak.values())
    whole: dict[str, Any] = {
        "precision": "float32",
        "optimizer": "adamw",
        "gradient_checkpointing": False,
        "lora": None,
        "frozen": [],
        "bytes": {"peak": peak, "peak_in": "optimizer step", "flops": 25_300_000_000_000, **OVER_THE_STEP},
        "at_peak": dict(at_peak),
        "known_error": 0.1,
        "utilisation": 0.4,
        "fits_on": ["b200", "h200", "mi300x"],
        "uncertain_on": ["h200"],
        **cost,
    }
    if gpu is not None:
        whole["gpu"] = {"lacks_bfloat16": False, "uncertain": False, "tokens_a_second": None, **gpu}
    return {
        "batch_size": 1,
        "tokens": 592,
        "image_tokens": 576,
        "images": 1,
        "context": 4096,
        "loss": True,
        "cost": whole,
    }


def on(name: str, memory: int, fits: bool, **more: Any) -> dict[str, Any]:
    return {"name": name, "room": (memory << 30) - CUDA_RESERVED, "fits": fits, **more}


SETTINGS = [
    {"kind": "all parameters", "options": "--precision bf16", "peak": 70_500_000_000, "uncertain": False},
    {"kind": "adapters", "options": "--precision bf16 --lora 16", "peak": 21_000_000_000, "uncertain": False},
]
FITS = on("4090", 24, True, tokens_a_second=1528.4, peak_rate=165, batch=BATCH)
TAKEN = on("a100-40", 40, False, asked="A100", others=["a100-80"], settings=SETTINGS[1:])
FORMS = {
    "does not fit": facts(NEEDS, on("a100-80", 80, False, settings=SETTINGS)),
    "fits": facts(LORA, FITS, precision="bfloat16", lora=16, gradient_checkpointing=True),
    "no gpu": facts(NEEDS),
    "no gpu is large enough": facts({"weights": 900 * GB}, fits_on=[], uncertain_on=[]),
    "uncertain": facts({"weights": 14 * GB, "activations": 9 * GB}, {**FITS, "uncertain": True}),
    "uncertain and too small": facts(
        {"weights": 14 * GB, "activations": 11 * GB}, {**on("4090", 24, False), "uncertain": True}
    ),
    "ambiguous": facts({"weights": 60 * GB}, TAKEN, fits_on=["a100-80", "h200"]),
    "fsdp": facts(
        RANK,
        {**FITS, "batch": {**BATCH, "size": 5, "confirmed": False}},
        ranks={
            "world_size": 64,
            "shard": "fsdp2",
            "blocks": 57,
            "largest_block": 404_800_000,
            "gathered": 567_300_000,
            "reduced_in": "float32",
        },
    ),
    "only memory is known": facts(LORA, on("24GB", 24, True, batch=BATCH)),
    "small": facts({"weights": 950_000, "gradients": 949_000, "temporary": 40}, on("t4", 16, True)),
    "not possible": {"not_possible": "the dry run can't carry aten.nonzero"},
    "no cost": {key: value for key, value in facts(NEEDS).items() if key != "cost"}
    | {"cost_not_possible": "FSDP2 can't shard it"},
}


def report_of(form: str) -> Report:
    told = FORMS[form]
    gpu = told.get("cost", {}).get("gpu")
    findings = ()
    if gpu is not None and not gpu["fits"]:
        peak = told["cost"]["bytes"]["peak"]
        fit = Fit(gpu=gpu["name"], memory=gpu["room"], needed=peak, needed_in="optimizer step")
        fit = replace(fit, would_fit=gpu["settings"][0]["options"] if gpu.get("settings") else None)
        findings = tuple(
            replace(f, rule="gpu-too-small", code="PERF401") for f in gpu_too_small.function(fit)
        )
    return Report("check", "llava", findings, ran=("gpu-too-small",), facts={"dry_run": told}, seconds=3.2)


@pytest.mark.parametrize("width", [80, 120])
def test_each_form_in_a_terminal(width: int) -> None:
    texts = []
    for form in FORMS:
        text = full.render(report_of(form), color=False, verbose=False, quiet=False, width=width)
        assert max(map(len, text.splitlines())) <= width
        texts.append(f"--- {form}\n{text}")
    assert snapshot.matches(f"dry-run-{width}", "\n".join(texts))


def test_on_a_page() -> None:
    pages = [dry_run_html({"dry_run": FORMS[form]}) for form in ("does not fit", "fits", "no gpu")]
    assert snapshot.matches("dry-run.html", "\n".join(pages))
    shares = [float(share) for share in re.findall(r"<span style='width:([\d.]+)%", pages[0])]
    assert len(shares) == 4 and sum(shares) == pytest.approx(100, abs=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_it_is_what_is_read_first(form: str) -> None:
    report, answer = report_of(form), answer_of(FORMS[form])
    text = full.render(report, color=False, verbose=False, quiet=False, width=200)
    assert text.startswith(answer.line + "\n")
    assert html.escape(answer.line) in html.fragment(report).partition("<section")[0]
    assert answer.text.split(":")[0] in markdown.render(
        report, color=False, verbose=False, quiet=False, width=80
    )
    if report.verdict == "fail":
        assert answer.glyph == "✗"
    assert not full.render(report, color=False, verbose=False, quiet=True, width=80).startswith(answer.line)


@pytest.mark.parametrize("width", [1, 20, 40, 60])
def test_a_narrow_terminal_has_the_numbers(width: int) -> None:
    text = full.render(report_of("does not fit"), color=False, verbose=False, quiet=False, width=width)
    assert "56.4 GB" in text and max(map(len, text.splitlines())) <= max(width, 40)


SIZES = st.one_of(st.integers(0, 2000), st.integers(0, 10**13))


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(PARTS)), SIZES), st.integers(1, 10**13), st.integers(1, 200))
def test_what_is_shown_adds_up_to_what_the_headline_shows(
    at_peak: dict[str, int], room: int, width: int
) -> None:
    total = sum(at_peak.values())
    parts = parts_of({"at_peak": at_peak})
    assert sum(part.size for part in parts) == total
    if not parts:
        return
    number, unit = amount(total).split()
    shown = [part.shown.split() for part in parts]
    assert {own for _, own in shown} == {unit}
    tenths = [round(10 * float(text.replace(",", ""))) for text in [number, *(text for text, _ in shown)]]
    assert tenths[0] == sum(tenths[1:])
    drawn = list(spans(parts, room, width))
    assert all(0 <= start < width and length >= 1 and start + length <= width for _, start, length in drawn)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(optimizer="sgd", checkpointing=True),
        Plan(lora=2, optimizer="adamw-fused"),
        Plan(precision="amp-bf16", optimizer="adafactor", freeze=("vision",)),
        Plan(shard="ddp", world_size=2),
        Plan(shard="fsdp2", world_size=2, optimizer="sgd"),
    ],
    ids=str,
)
def test_the_parts_of_a_step_are_its_peak(family: str, plan: Plan) -> None:
    model, batch = families.build(family)
    measured = measure(Subject(model, batch), plan)
    assert sum(measured.peak_parts.values()) == measured.peak
    assert all(size >= 0 for size in measured.peak_parts.values())
    assert measured.peak_parts.get("gradients", 0) <= measured.gradients
    assert ("gathered" in measured.peak_parts) <= (plan.shard == "fsdp2")
    cost = cost_of(measured, plan.optimizer)
    assert sum(cost.at_peak.values()) == cost.peak


class Wide(nn.Module):
    """One layer whose gradient and activations have sizes that are known."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1000, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = self.layer(x * 2)  # 400,000 bytes are kept for backward
        return kept.sum()


def test_each_part_is_what_it_says() -> None:
    measured = measure(Subject(Wide(), {"x": torch.randn(100, 1000)}), Plan())
    assert measured.peak_at[0] == "backward"
    assert measured.peak_parts["gradients"] == 4 * 1000
    assert 4 * 100_000 <= measured.peak_parts["activations"] <= 4 * 100_000 + 1000


def test_a_real_dry_run_has_parts_that_add_up(tmp_path: Any) -> None:
    cost = check(written(tmp_path, tiny_llava()), gpu="T4").facts["dry_run"]["cost"]
    assert sum(cost["at_peak"].values()) == cost["bytes"]["peak"]
    assert cost["known_error"] == 0.1 and cost["gpu"]["uncertain"] is False


def test_within_the_known_error_nothing_is_certain() -> None:
    model, batch = families.build("llava")
    cost = cost_of(measure(Subject(model, batch), Plan()))
    for share, fit, unsure in (
        (0.8, False, False),
        (0.95, False, True),
        (1.05, True, True),
        (1.2, True, False),
    ):
        gpu = GpuModel((cost.peak * share + CUDA_RESERVED) / (1 << 30))
        assert (fits(cost, gpu), is_uncertain(cost, gpu)) == (fit, unsure)


def test_what_can_not_be_computed_is_not_called_fitting(tmp_path: Any) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Mine(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.layer = nn.Linear(4, 4)\n\n    def forward(self, x):\n"
        "        y = self.layer(x)\n        return y[y > 0].sum()\n\n"
        "def build():\n    return Mine(), {'x': torch.randn(2, 4)}\n",
        encoding="utf-8",
    )
    report = check(f"{tmp_path}/mine.py:build", gpu="24GB")
    assert report.verdict == "incomplete" and report.exit_status == 2
    assert answer_of(report.facts["dry_run"]).line.startswith("! no dry run: ")
    assert "whether a step fits 24GB is not known" in str(report)
    assert check(f"{tmp_path}/mine.py:build").exit_status == 0
