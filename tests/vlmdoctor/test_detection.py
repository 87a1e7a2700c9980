"""A fast slice of the detection benchmark, and each false alarm that it has shown."""

from __future__ import annotations

import pytest
import torch

import vlmdoctor
from benchmarks.detection.case import Case
from benchmarks.detection.corpus import by_name
from benchmarks.detection.families import NOT_BUILT, OVERRIDES
from benchmarks.detection.models import VLMS, make
from benchmarks.detection.score import score, verdict
from benchmarks.detection.table import markdown, summary
from vlmdoctor.report import Report

HEALTHY = [
    "vlm/chameleon",
    "vlm/evolla",
    "vlm/florence2",
    "vlm/fuyu",
    "vlm/gemma3",
    "vlm/git",
    "vlm/idefics",
    "vlm/instructblip",
    "vlm/lfm2_vl",
    "vlm/llama4",
    "vlm/mistral_large4",
    "vlm/molmo2",
    "vlm/pi0",
    "vlm/pix2struct",
    "vlm/qwen3_vl",
    "vlm/t5gemma2",
    "vlm/udop",
    "vlm/vision-encoder-decoder",
    "decoder/bloom",
    "decoder/deepseek_v32",
    "decoder/mamba",
    "handwritten/clip",
    "handwritten/flamingo",
    "handwritten/llava_scratch",
    "handwritten/nanovlm",
    "handwritten/prefix_lm",
    "handwritten/qformer",
    "vlm/hunyuan_vl",
    "variant/bfloat16-autocast/llama",
    "variant/bfloat16-weights/aria",
    "variant/bfloat16-weights/emu3",
    "variant/forward-compiled/llava",
    "variant/forward-under-autocast/llava",
    "variant/forward-wrapped/qwen3_vl",
    "variant/model-known-to-the-loss/llava",
    "variant/noise-on-embeddings/gemma3",
    "variant/packed-by-positions/llava",
    "variant/schedule-reduce-lr-on-plateau/gemma3",
    "variant/two-images-in-a-row/kosmos-2",
    "variant/words-under-masks/llava",
    "variant/right-padding/smolvlm",
    "variant/already-trained/llava",
    "variant/a-row-without-an-image/llava",
    "variant/gradient-checkpointing/qwen2_5_vl",
    "variant/left-padding/llama",
    "variant/projector-alone/smolvlm",
    "variant/two-learning-rates/llava",
]
FAULTS = [
    "D18-packed-with-a-cache/llava",
    "E02-features-detached/qwen2_5_vl",
    "E03-tower-under-no-grad/llava",
    "E03-tower-under-no-grad/nanovlm",
    "E04-reentrant-behind-frozen-embeddings/llama",
    "E09-pattern-matches-nothing/llava",
    "E14-built-before-unfreezing/internvl",
    "A01-table-from-hidden-size/llama",
    "D02-every-label-masked/llava",
    "X-optimizer-of-a-copy/llama",
    "A08-no-causal-mask/llava",
    "B02-one-placeholder-too-many/qwen2_5_vl",
]

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


def looked_at(case: Case) -> Report:
    torch.manual_seed(0)
    return vlmdoctor.check(case.make())


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy(name: str) -> None:
    report = looked_at(by_name()[name])
    assert [(f.rule, f.message, f.at) for f in report.findings if f.severity != "info"] == []
    assert report.crashed == ()
    assert {"forward-raises", "no-gradient"} <= set(report.ran)


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str) -> None:
    case = by_name()[name]
    judged = verdict(case, looked_at(case).to_dict())
    assert judged.right, judged.outcome["findings"]
    assert judged.located is not False


def test_a_branch_that_a_tower_leaves_out_is_no_cut() -> None:
    """MiniCPM's tower skips its merger at the finer resolution: a warning, since the path goes through."""
    made = make("minicpm_ocr", downsample_mode="4x")
    (finding,) = vlmdoctor.check(made.subject(), select=["no-gradient"]).findings
    assert finding.severity == "warning"
    assert "vit_merger" in " ".join(finding.at)


def test_a_compiled_model_is_not_compiled_for_a_few_passes() -> None:
    made = make("llama")
    compiled = 0

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.nn.Module:
        nonlocal compiled
        compiled += 1
        return graph

    made.model = torch.compile(made.model, backend=backend)
    report = vlmdoctor.check(made.subject())
    assert (report.findings, report.crashed, compiled) == ((), (), 0)
    made.model(**made.batch)
    assert compiled > 0


class TestBenchmark:
    def test_names_are_unique_and_every_fault_is_in_the_corpus(self) -> None:
        cases = by_name()
        kinds = [name.partition("/")[0] for name, case in cases.items() if not case.fault]
        assert kinds.count("vlm") >= 90
        assert kinds.count("decoder") >= 25
        faults = {case.fault for case in cases.values() if case.fault}
        assert all(cases[name].rules for name in cases if cases[name].fault)
        assert len(faults) >= 50

    def test_overrides_belong_to_families(self) -> None:
        from transformers import CONFIG_MAPPING

        assert set(OVERRIDES) <= set(CONFIG_MAPPING)

    def test_every_family_that_sees_has_a_case_or_a_reason(self) -> None:
        from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

        assert {*VLMS, *NOT_BUILT} == set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
        assert not set(VLMS) & set(NOT_BUILT)

    def test_judging(self) -> None:
        fault = Case("f/x", "x", lambda: None, "f", "how", ("GRAD2*", "blank-images"), ("proj",))
        finding = {
            "rule": "no-gradient",
            "code": "GRAD201",
            "severity": "error",
            "message": "cut",
            "at": ["proj"],
        }
        other = {**finding, "rule": "initial-loss", "code": "LOSS102", "severity": "warning"}
        judged = verdict(fault, {"findings": [finding, other]})
        assert (judged.found, judged.right, judged.located, judged.beside) == (
            True,
            True,
            True,
            ("initial-loss",),
        )
        assert not verdict(fault, {"findings": [other]}).right
        assert not verdict(fault, {"findings": [{**finding, "severity": "info"}]}).found
        assert verdict(fault, {"findings": [{**finding, "at": []}]}).located is False

    def test_table_names_what_was_missed(self) -> None:
        fault = Case("f/x", "x", lambda: None, "f", "how", ("GRAD2*",), ())
        healthy = Case("vlm/y", "y", lambda: None)
        alarm = {"rule": "initial-loss", "code": "LOSS102", "severity": "warning", "message": "m", "at": []}
        outcomes = [{"findings": []}, {"findings": [alarm]}]
        scored = score([fault, healthy], outcomes)
        page = markdown(scored)
        assert "- f/x" in page and "initial-loss (warning) 1" in page
        assert "missed: f/x" in summary(scored)
        assert scored.healthy_errors == 0
