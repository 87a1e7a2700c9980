"""Data evidence and its rules: conversations in the manner of many families, healthy and broken."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from conversations import FAMILIES, IGNORED, STOPS, Made, encode, made, padded, pixels, text_of, tokenizer
from families import build
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import data as hypothesis_data
from tiny_vlm import TinyVLM
from tiny_vlm import batch as tiny_batch

import vlmdoctor
import vlmdoctor.probes.data.read
from vlmdoctor.evidence.data import Data
from vlmdoctor.finding import Finding, Severity
from vlmdoctor.look import document, page, terminal
from vlmdoctor.look.findings import data_findings
from vlmdoctor.look.samples import looks_of
from vlmdoctor.subject import Subject
from vlmdoctor.targets.resolve import resolve


def told(case: Made) -> list[tuple[str, str]]:
    return [(finding.rule, finding.message) for finding in data_findings(case.data())]


def only(case: Made, rule: str, severity: Severity = Severity.ERROR) -> Finding:
    findings = data_findings(case.data())
    assert [(f.rule, f.severity) for f in findings] == [(rule, severity)], told(case)
    return findings[0]


@pytest.fixture(params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Made:
    return made(request.param)


class TestRoles:
    def test_speakers_are_told_apart_by_the_ids_alone(self, case: Made) -> None:
        data = case.data()
        row = data.rows[0]
        assert data.roles_unknown is None and all(r.roles_known for r in data.rows)
        joined = text_of(row, case.tokenizer, "user").replace(" ", "")
        assert joined == "whatisontheleft?anditscolour?"
        assert text_of(row, case.tokenizer, "assistant").replace(" ", "") == "asmallredcatred"
        assert set(text_of(row, case.tokenizer, "stop").split(STOPS[case.family])) == {""}
        assert row.count("image") == 4 and not row.count("other") and not row.count("system")

    def test_only_answers_and_stop_tokens_are_learned(self, case: Made) -> None:
        for row in case.data().rows:
            learned = {role for role, seen in zip(row.roles, row.seen, strict=True) if seen}
            assert learned == {"assistant", "stop"}
            assert row.count("assistant") == row.count("assistant", supervised=True)

    def test_padding_on_either_side(self, case: Made) -> None:
        right = case.data().rows[1]
        pad = right.count("padding")
        assert pad and right.roles[-pad:] == ("padding",) * pad
        rolled = {k: torch.stack([v[0], v[1].roll(pad)]) for k, v in case.batch.items() if v.ndim == 2}
        left = Made(case.family, case.model, case.tokenizer, rolled).data().rows[1]
        assert left.roles[:pad] == ("padding",) * pad
        assert left.roles[pad:] == right.roles[:-pad]

    def test_a_system_message(self) -> None:
        words = tokenizer("qwen2_vl")
        turns = [("system", "be short"), ("user", "who?"), ("assistant", "me")]
        text = words.apply_chat_template([{"role": r, "content": c} for r, c in turns], tokenize=False)
        ids = torch.tensor([words(text)["input_ids"]])
        row = Subject(torch.nn.Linear(1, 1), batch={"input_ids": ids}, tokenizer=words)
        row = vlmdoctor.probes.data.read.read(row).rows[0]
        for role, content in turns:
            assert text_of(row, words, role) == content

    @pytest.mark.parametrize("without", ["tokenizer", "template", "marker"])
    def test_unknown_for_a_reason(self, without: str) -> None:
        case = made("qwen2_vl")
        if without == "tokenizer":
            case.tokenizer = case.processor = None
        elif without == "template":
            case.tokenizer.chat_template = None
        else:
            case.tokenizer = tokenizer("qwen2_vl", chat_template=tokenizer("glm").chat_template)
        data = case.data()
        reasons = {
            "tokenizer": "no tokenizer was given",
            "template": "the tokenizer has no chat template",
            "marker": "'<|assistant|>', is nowhere in the tokens",
        }
        assert reasons[without] in data.roles_unknown
        assert data.rows[0].count("image") == 4
        report = vlmdoctor.check(case.model, case.batch, tokenizer=case.tokenizer, depth="static")
        assert data.roles_unknown in dict(report.skipped)["prompt-supervised"]

    def test_paligemma_by_its_token_types(self) -> None:
        case = paligemma()
        row = case.data().rows[0]
        assert row.roles_known and row.count("user") == 3 and row.count("assistant", supervised=True) == 3
        assert told(case) == []


def paligemma() -> Made:
    words = tokenizer("llava", chat_template=None)
    image, stop = words.convert_tokens_to_ids("<image>"), words.eos_token_id
    ids = torch.tensor([[image] * 4 + [50, 51, 52, 60, 61, 62, stop]] * 2)
    types = torch.tensor([[0] * 7 + [1] * 4] * 2)
    batch = {"input_ids": ids, "labels": ids.masked_fill(types == 0, IGNORED), "token_type_ids": types}
    batch |= {"attention_mask": torch.ones_like(ids), "pixel_values": pixels(2)}
    case = made("llava")
    case.model.config.model_type = "paligemma"
    return Made("paligemma", case.model, words, batch, case.processor)


class TestHealthy:
    def test_nothing_is_said(self, case: Made) -> None:
        assert told(case) == []

    def test_a_text_only_row_among_others(self, case: Made) -> None:
        words = case.tokenizer
        ids, labels = encode(words, case.family, (("hello?", "red"),), 0)
        rows = [[int(i) for i in row[row != words.pad_token_id]] for row in case.batch["input_ids"][:1]]
        batch = padded(
            [*rows, ids], [case.batch["labels"][0].tolist()[: len(rows[0])], labels], words.pad_token_id
        )
        more = {k: v for k, v in case.batch.items() if k not in batch and k != "token_type_ids"}
        case.batch = batch | more
        for key in ("pixel_values", "image_grid_thw"):
            if key in case.batch:
                case.batch[key] = case.batch[key][: len(case.batch[key]) // 2]
        if case.family == "gemma3":
            case.batch["token_type_ids"] = (
                batch["input_ids"] == words.convert_tokens_to_ids("<image>")
            ).long()
        assert told(case) == []

    @pytest.mark.parametrize("target", ["minivlm", "minivlm:tiny8"])
    def test_minivlm(self, target: str) -> None:
        subject = resolve(target).subject
        data = vlmdoctor.probes.data.read.read(subject)
        assert data.samples == 16 and data.roles_unknown is None
        assert data_findings(data) == ()

    def test_reading_leaves_dataset_batch_and_random_states_alone(self) -> None:
        class Spoils:
            def __call__(self, samples: list) -> dict:
                ids = torch.stack([sample.pop("input_ids") + torch.randint(0, 1, (1,)) for sample in samples])
                return {"input_ids": ids, "labels": ids.clone()}

        dataset = [{"input_ids": torch.arange(5, 11)} for _ in range(6)]
        batch = {"input_ids": torch.arange(6)[None]}
        model = made("llava").model
        before = copy.deepcopy(batch), torch.get_rng_state()
        subject = Subject(model, batch=batch, train_dataset=dataset, data_collator=Spoils())
        assert vlmdoctor.probes.data.read.read(subject).samples == 6
        assert all("input_ids" in sample for sample in dataset)
        assert torch.equal(batch["input_ids"], before[0]["input_ids"])
        assert torch.equal(torch.get_rng_state(), before[1])


class TestLabels:
    def test_everything_masked(self, case: Made) -> None:
        case.batch["labels"][:] = IGNORED
        finding = only(case, "nothing-supervised")
        assert "the rows contain answers" in finding.cause

    def test_one_row_masked_is_legal(self, case: Made) -> None:
        case.batch["labels"][0] = IGNORED
        assert told(case) == []

    def test_ids_as_labels(self, case: Made) -> None:
        case.batch["labels"] = case.batch["input_ids"].clone()
        (finding,) = data_findings(case.data())
        assert finding.rule == "image-tokens-supervised" and "nothing is masked" in finding.cause
        assert sorted(symptom.split()[0] for symptom in finding.symptoms) == ["padding", "the"]

    def test_image_id_where_padding_was_to_be_masked(self, case: Made) -> None:
        image = case.tokenizer.convert_tokens_to_ids("<image>")
        case.batch["labels"][case.batch["attention_mask"] == 0] = image
        finding = data_findings(case.data())[0]
        assert finding.rule == "image-tokens-supervised" and "written into the labels" in finding.cause

    def test_stop_token_masked_as_padding(self, case: Made) -> None:
        stop = case.tokenizer.eos_token_id
        case.batch["input_ids"][case.batch["input_ids"] == case.tokenizer.pad_token_id] = stop
        case.tokenizer.pad_token = case.tokenizer.eos_token
        case.batch["labels"][case.batch["labels"] == stop] = IGNORED
        assert "same token" in only(case, "stop-token-not-supervised").cause

    def test_stop_token_masked(self, case: Made) -> None:
        case.batch["labels"][case.batch["labels"] == case.tokenizer.eos_token_id] = IGNORED
        only(case, "stop-token-not-supervised", Severity.WARNING)

    def test_minus_one(self, case: Made) -> None:
        labels = case.batch["labels"]
        labels[labels == IGNORED] = -1
        assert "ignores -100 only" in next(
            f.cause for f in data_findings(case.data()) if f.rule == "label-out-of-range"
        )

    def test_no_output_row_for_the_label(self) -> None:
        case = made("mllama")
        case.batch["labels"][0, -1] = len(case.tokenizer) + 3
        assert any(rule == "label-out-of-range" for rule, _ in told(case))
        assert told(made("mllama")) == []

    def test_generation_stops_at_another_token(self, case: Made) -> None:
        case.model.config.eos_token_id = case.tokenizer.pad_token_id
        only(case, "stop-token-not-eos", Severity.WARNING)
        case.model.config.eos_token_id = [case.tokenizer.pad_token_id, case.tokenizer.eos_token_id]
        assert told(case) == []

    def test_prompts_supervised(self, case: Made) -> None:
        row_roles = case.data().rows
        for i, row in enumerate(row_roles):
            for place, role in enumerate(row.roles):
                if role in ("user", "marker"):
                    case.batch["labels"][i, place] = row.ids[place]
        only(case, "prompt-supervised", Severity.WARNING)

    def test_assistant_only_loss_without_marks(self) -> None:
        case = made("qwen2_vl")
        case.batch["labels"][:] = IGNORED
        case.more["training_args"] = {"assistant_only_loss": True}
        assert "no label" not in only(case, "template-without-generation").message


class TestShift:
    @staticmethod
    def rules(model: torch.nn.Module, batch: dict, **options: object) -> list[str]:
        report = vlmdoctor.check(
            model, batch, select=["labels-shifted-twice", "labels-not-shifted"], **options
        )
        assert report.crashed == ()
        return [finding.rule for finding in report.findings] + [name for name, _ in report.skipped]

    @pytest.mark.parametrize("family", ["llama", "llava", "qwen2_vl", "gpt2"])
    def test_the_model_shifts(self, family: str) -> None:
        model, batch = build(family)
        assert self.rules(model, batch) == []
        ahead = batch | {"labels": batch["labels"].roll(-1, 1)}
        ahead["labels"][:, -1] = IGNORED
        assert self.rules(model, ahead) == ["labels-shifted-twice"]
        behind = batch | {"labels": batch["labels"].roll(1, 1)}
        behind["labels"][:, 0] = IGNORED
        assert self.rules(model, behind) == ["labels-not-shifted"]

    def test_a_loss_of_the_users_own(self) -> None:
        model, batch = build("llama")

        def loss(shift: int):
            def of(model: torch.nn.Module, batch: dict) -> torch.Tensor:
                logits = model(**batch).logits
                logits = logits[:, : logits.shape[1] - shift].flatten(0, 1)
                return torch.nn.functional.cross_entropy(logits, batch["labels"][:, shift:].flatten())

            return of

        assert self.rules(model, batch, loss_fn=loss(1)) == []
        assert self.rules(model, batch, loss_fn=loss(0)) == ["labels-not-shifted"]
        assert self.rules(model, batch, loss_fn=loss(2)) == ["labels-shifted-twice"]

    def test_few_or_repeated_labels_are_not_judged(self) -> None:
        batch = tiny_batch(0)
        batch["input_ids"][:], batch["labels"][:] = 5, 5
        assert sorted(self.rules(TinyVLM(), batch)) == ["labels-not-shifted", "labels-shifted-twice"]

    def test_minivlm_in_training_mode(self) -> None:
        subject = resolve("minivlm").subject
        subject.model.train()
        report = vlmdoctor.check(subject, select=["labels-shifted-twice"], depth="forward")
        assert subject.model.training
        assert report.crashed == () and report.findings == ()


class TestTokens:
    def test_beyond_the_embedding(self, case: Made) -> None:
        case.batch["input_ids"][0, -1] = len(case.tokenizer) + 20
        assert any(rule == "token-out-of-table" for rule, _ in told(case))

    def test_added_and_not_resized(self, case: Made) -> None:
        case.tokenizer.add_tokens(["<new>"])
        token = case.tokenizer.convert_tokens_to_ids("<new>")
        rows = case.model.embed.num_embeddings
        case.batch["input_ids"][0, 8] = max(token, rows)
        finding = next(f for f in data_findings(case.data()) if f.rule == "token-out-of-table")
        assert ("was not resized" in finding.cause) == (token >= rows)

    def test_placeholder_in_pieces(self) -> None:
        case = made("qwen2_vl")
        case.processor.image_token = "<picture>"
        case.batch["input_ids"][case.batch["input_ids"] == case.model.config.image_token_id] = 40
        assert "is split into" in only(case, "placeholder-not-a-token").message

    def test_longer_than_the_positions(self, case: Made) -> None:
        case.model.config.text_config.max_position_embeddings = 20
        only(case, "sequence-too-long", Severity.WARNING)
        case.model.config.text_config.rope_scaling = {"rope_type": "yarn", "factor": 4.0}
        assert told(case) == []

    def test_answers_cut_off(self) -> None:
        case = made("qwen2_vl")
        ids, labels = case.batch["input_ids"][0].tolist(), case.batch["labels"][0].tolist()
        short = int(case.batch["attention_mask"][1].sum())
        cut = [ids[:-2]] * 4 + [case.batch["input_ids"][1].tolist()[:short]]
        masks = [labels[:-2]] * 4 + [case.batch["labels"][1].tolist()[:short]]
        case.batch = padded(cut, masks, case.tokenizer.pad_token_id)
        assert "answers-cut-off" in {rule for rule, _ in told(case)}


class TestImages:
    @pytest.mark.parametrize("family", ["qwen2_vl", "llava", "gemma3"])
    def test_truncated_in_an_image(self, family: str) -> None:
        case = made(family)
        places = (case.batch["input_ids"][1] == case.model.config.image_token_id).nonzero()
        cut = int(places[2])
        for key in ("input_ids", "labels", "attention_mask", "token_type_ids"):
            if key in case.batch:
                case.batch[key] = case.batch[key][:, :cut]
        finding = next(f for f in data_findings(case.data()) if f.rule == "image-token-count")
        assert "image features for" in finding.message and f"truncated at {cut} tokens" in finding.cause

    @pytest.mark.parametrize("family", ["qwen2_vl", "llava", "gemma3"])
    def test_no_placeholder(self, family: str) -> None:
        case = made(family, image_tokens=0)
        case.model.config.mm_tokens_per_image = 4
        assert "the text has no image placeholder" in only(case, "image-token-count").cause

    @pytest.mark.parametrize("family", ["qwen2_vl", "llava", "gemma3"])
    def test_placeholders_not_expanded(self, family: str) -> None:
        case = made(family, image_tokens=1)
        case.model.config.mm_tokens_per_image = 4
        assert "not expanded" in only(case, "image-token-count").cause

    def test_siglip_has_no_class_token_to_drop(self) -> None:
        case = made("llava")
        case.model.config.vision_config.model_type = "siglip_vision_model"
        assert "set up for another" in only(case, "image-token-count").cause

    @pytest.mark.parametrize(
        ("change", "words", "severity"),
        [
            (lambda x: ((x / 2 + 0.5) / 255 - 0.5) / 0.5, "nearly black", Severity.ERROR),
            (lambda x: ((x / 2 + 0.5) * 255 - 0.5) / 0.5, "never divided", Severity.ERROR),
            (lambda x: x / 2 + 0.5, "none, from 0 to 1 fits", Severity.WARNING),
            (lambda x: clip(x / 2 + 0.5), "CLIP's fits", Severity.WARNING),
        ],
        ids=["rescaled twice", "never rescaled", "not normalised", "another mean"],
    )
    @pytest.mark.parametrize("family", ["llava", "mllama", "idefics3"])
    def test_pixels(self, family: str, change, words: str, severity: Severity) -> None:
        case = made(family)
        case.batch["pixel_values"] = change(case.batch["pixel_values"])
        assert words in only(case, "pixel-range", severity).message

    def test_pixels_that_were_interpolated_or_rounded_are_not_judged(self) -> None:
        case = made("llava")
        case.batch["pixel_values"] = torch.randn(2, 3, 8, 8).clamp(-1, 1)
        assert told(case) == []
        case.batch["pixel_values"] = pixels(2).bfloat16()
        assert told(case) == []

    def test_blank(self) -> None:
        case = made("llava")
        case.batch["pixel_values"] = torch.full((2, 3, 8, 8), -1.0)
        only(case, "pixels-not-usable", Severity.WARNING)
        case.batch["pixel_values"][0] = pixels(1)[0]
        assert told(case) == []

    def test_not_a_number(self) -> None:
        case = made("llava")
        case.batch["pixel_values"][0, 0, 0, 0] = float("nan")
        only(case, "pixels-not-usable")

    def test_qwens_patches_are_put_together_again(self) -> None:
        from vlmdoctor.probes.data.pixels import images_of

        image = torch.arange(3 * 8 * 8.0).reshape(1, 1, 3, 8, 8).expand(1, 2, 3, 8, 8)
        patches = image.reshape(1, 2, 3, 1, 2, 4, 1, 2, 4).permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(4, -1)
        vision = SimpleNamespace(patch_size=4, spatial_merge_size=2)
        batch = {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, 2, 2]])}
        found = images_of(batch, SimpleNamespace(vision_config=vision))
        assert torch.equal(found[0], image[0, 0])


def clip(images: torch.Tensor) -> torch.Tensor:
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    return (images - mean) / torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


class TestMasks:
    def test_images_hidden(self, case: Made) -> None:
        case.batch["attention_mask"][case.batch["input_ids"] == case.model.config.image_token_id] = 0
        assert "every image" in only(case, "mask-hides-tokens").message

    def test_left_padding_without_a_mask(self, case: Made) -> None:
        pad = case.data().rows[1].count("padding")
        for key in ("input_ids", "labels"):
            case.batch[key][1] = case.batch[key][1].roll(pad)
        case.batch.pop("token_type_ids", None)
        del case.batch["attention_mask"]
        rules = {rule for rule, _ in told(case)}
        assert rules == {"left-padding-seen"} | ({"token-types"} if case.family == "gemma3" else set())

    def test_gemma_without_token_types(self) -> None:
        case = made("gemma3")
        del case.batch["token_type_ids"]
        assert "is missing" in only(case, "token-types", Severity.WARNING).message

    @pytest.mark.parametrize("value", [0, 1])
    def test_paligemma_with_one_type(self, value: int) -> None:
        case = paligemma()
        case.batch["token_type_ids"][:] = value
        finding = only(case, "token-types", Severity.WARNING if value else Severity.ERROR)
        assert ("attend to themselves" in finding.message) == (value == 0)


class TestSamples:
    @staticmethod
    def data(dataset: object, collator: object, **arguments: object) -> Data:
        subject = Subject(
            made("llava").model, train_dataset=dataset, data_collator=collator, training_args=arguments
        )
        return vlmdoctor.probes.data.read.read(subject)

    def test_one_that_can_not_be_collated(self) -> None:
        def collate(samples: list) -> dict:
            for sample in samples:
                if sample["n"] == 9:
                    raise ValueError("absolute aspect ratio must be smaller than 200, got 227.5")
            return {"input_ids": torch.tensor([[sample["n"], 5, 6] for sample in samples])}

        (finding,) = data_findings(self.data([{"n": n} for n in range(12)], collate))
        assert finding.rule == "sample-raises"
        assert "sample 9" in finding.message and "227.5" in finding.message and finding.line

    def test_columns_that_the_trainer_takes_away(self) -> None:
        def collate(samples: list) -> dict:
            assert all("pixel_values" in sample for sample in samples) or samples[0]["images"]
            return {"input_ids": torch.stack([sample["input_ids"] for sample in samples])}

        dataset = [{"input_ids": torch.arange(4), "images": ["a"]} for _ in range(4)]
        assert data_findings(self.data(dataset, collate)) == ()
        (finding,) = data_findings(self.data(dataset, collate, remove_unused_columns=True))
        assert "images" in finding.message and "remove_unused_columns" in finding.message

    def test_streams_and_datasets_without_collator(self) -> None:
        class Stream:
            def __iter__(self):
                return iter([{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 3)

        assert self.data(Stream(), None).samples == 3
        iterator = iter([{"input_ids": [5, 6]}] * 2)
        assert self.data(iterator, None).samples == 0
        assert len(list(iterator)) == 2

    def test_the_rate_of_samples_without_labels(self) -> None:
        def dataset(empty: int) -> list:
            rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]} for _ in range(12)]
            return [r | {"labels": [IGNORED] * 3} if i < empty else r for i, r in enumerate(rows)]

        assert data_findings(self.data(dataset(1), None)) == ()
        (finding,) = data_findings(self.data(dataset(4), None))
        assert (finding.rule, finding.severity) == ("nothing-supervised", Severity.WARNING)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(hypothesis_data())
def test_no_tokens_make_a_rule_raise(drawn) -> None:
    case = KNOWN[drawn.draw(st.sampled_from(sorted(KNOWN)))]
    rows, length = drawn.draw(st.integers(1, 3)), drawn.draw(st.integers(1, 24))
    numbers = st.lists(st.integers(-3, len(case.tokenizer) + 3), min_size=length, max_size=length)

    def table(values: st.SearchStrategy) -> torch.Tensor:
        return torch.tensor(drawn.draw(st.lists(values, min_size=rows, max_size=rows)))

    batch = {"input_ids": table(numbers)}
    if drawn.draw(st.booleans()):
        batch["labels"] = table(
            st.lists(st.sampled_from([IGNORED, -1, 5, 9]), min_size=length, max_size=length)
        )
    if drawn.draw(st.booleans()):
        batch["attention_mask"] = table(st.lists(st.integers(0, 1), min_size=length, max_size=length))
    if drawn.draw(st.booleans()):
        batch["pixel_values"] = drawn.draw(
            st.sampled_from([torch.zeros(1, 3, 8, 8), torch.ones(2, 1, 3, 4, 4)])
        )
    subject = Subject(case.model, batch=batch, tokenizer=case.tokenizer, processor=case.processor)
    report = vlmdoctor.check(subject, depth="static")
    assert report.crashed == ()
    json.dumps(report.to_dict(), allow_nan=False)
    looks, data = looks_of(subject, 4)
    for draw in (document.render, page.render):
        assert draw(looks, data, "x")
    assert terminal.render(looks, data, "x", color=True, width=80)


KNOWN = {family: made(family) for family in ("qwen2_vl", "llava", "gemma3")}


@pytest.mark.parametrize("batch", [None, (), torch.ones(2, 3), {"x": 1}, {"input_ids": torch.rand(2, 3)}])
def test_odd_batches_are_no_data(batch: object) -> None:
    from vlmdoctor.engine import Gatherer
    from vlmdoctor.errors import Unavailable

    data = vlmdoctor.probes.data.read.read(Subject(torch.nn.Linear(1, 1), batch=batch))
    assert data.rows == ()
    if not data.shapes:
        with pytest.raises(Unavailable):
            Gatherer(Subject(torch.nn.Linear(1, 1), batch=batch))(Data)


def test_pixels_of_bytes_were_never_rescaled() -> None:
    model, batch = build("llava")
    batch["pixel_values"] = (batch["pixel_values"].sigmoid() * 255).to(torch.uint8)
    report = vlmdoctor.check(model, batch, select=["pixel-range"], depth="static")
    assert [finding.rule for finding in report.findings] == ["pixel-range"]
