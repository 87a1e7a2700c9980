"""A user's own data: every format is read, and what is wrong in it is counted and named, never a crash."""

from __future__ import annotations

import json
import pickle

import pytest
from data_rows import BAD_ROWS, folder_of_images, image_bytes, llava
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minivlm.data import IndexStream, load_data
from minivlm.data.rows import BadRow, read_row
from minivlm.errors import UserError


def write(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def everything(spec, **options):
    return load_data(spec, hold_out=False, **options)


def test_llava_rows_of_all_sorts(tmp_path):
    folder_of_images(tmp_path)
    rows = [
        llava(id="a", image="0.png"),
        llava("<image> and <image>?", "two", id="b", image=["1.png", "2.png"]),
        llava("no picture at all", "text only", id=3),
        {
            "messages": [{"role": "system", "content": "be brief"}, *llava()["conversations"]],
            "image": "1.png",
        },
        {"conversations": [{"content": "<image>"}, {"content": "roles by turn"}], "image": "2.png"},
        {"texts": [{"user": "what?", "assistant": "implied"}], "images": ["0.png"]},
    ]
    dataset = everything(write(tmp_path / "rows.json", rows))
    assert len(dataset) == 6 and dataset.report.bad == 0 and not dataset.endless
    assert [len(sample.images) for sample in dataset] == [1, 2, 0, 1, 1, 1]
    assert [m["role"] for m in dataset[3].messages] == ["system", "user", "assistant"]
    assert [m["role"] for m in dataset[4].messages] == ["user", "assistant"]
    assert dataset[5].messages[0]["content"] == "<image>\nwhat?"
    assert dataset[0].images[0].convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    assert {sample.kind for sample in dataset} == set(dataset.headline_kinds)


def test_chat_messages_in_parts(tmp_path):
    folder_of_images(tmp_path)
    parts = [{"type": "image", "image": "0.png"}, {"type": "text", "text": "what?"}]
    url = [{"type": "text", "text": "and"}, {"type": "image_url", "image_url": {"url": "1.png"}}]
    turns = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": url},
        {"role": "assistant", "content": [{"type": "text", "text": "green"}]},
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"messages": turns}) + "\n\n", encoding="utf-8")
    (sample,) = everything(str(path))
    assert [m["content"] for m in sample.messages] == ["<image>\nwhat?", "red", "and\n<image>", "green"]
    assert len(sample.images) == 2


@pytest.mark.parametrize(("reason", "row"), [(r, row) for r, rows in BAD_ROWS.items() for row in rows])
def test_each_bad_row_is_counted_under_its_reason(tmp_path, reason, row):
    folder_of_images(tmp_path)
    rows = [llava(id="good", image="0.png"), row]
    spec = write(tmp_path / "rows.json", rows)
    dataset = everything(spec)
    assert len(dataset) == 1
    assert dict(dataset.report.reasons) == {reason: 1}
    assert dataset.report.examples[reason][0].startswith("row 1")
    assert f"1 x {reason}: row 1" in str(dataset.report)
    with pytest.raises(UserError, match=reason):
        everything(spec, on_bad_row="refuse")


def test_jsonl_is_read_by_line_with_bad_lines_named(tmp_path):
    folder_of_images(tmp_path)
    good = [llava(answer=f"answer {i} é", image="0.png", id=i) for i in range(3)]
    lines = [
        json.dumps(good[0], ensure_ascii=False),
        "",
        "{broken",
        json.dumps(good[1]),
        "  ",
        json.dumps(good[2]),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\r\n".join(lines).encode())
    dataset = everything(str(path))
    assert [s.messages[1]["content"] for s in dataset] == [f"answer {i} é" for i in range(3)]
    assert dataset.report.total == 4
    assert dict(dataset.report.reasons) == {"not valid JSON": 1}


def test_bytes_that_are_no_text_are_a_bad_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"messages": "\xff\xfe"}\n' + json.dumps(llava("q", "a")).encode())
    dataset = everything(str(path))
    assert len(dataset) == 1 and dataset.report.bad == 1


def test_the_report_names_five_examples_of_each_reason_by_row_and_id(tmp_path):
    rows = [llava("q", "", id=f"id{i}") for i in range(9)] + [llava("q", "a")]
    report = everything(write(tmp_path / "rows.json", rows)).report
    assert report.reasons["empty answer"] == 9
    assert report.examples["empty answer"][:2] == ["row 0, id id0", "row 1, id id1"]
    assert len(report.examples["empty answer"]) == 5
    assert report.to_dict()["bad"]["empty answer"]["count"] == 9
    assert report.good == 1
    assert str(report).endswith("...")


def broken_in_the_middle(tmp_path):
    names = folder_of_images(tmp_path, 6)
    (tmp_path / "2.png").write_bytes(image_bytes()[:40])
    (tmp_path / "3.png").write_bytes(b"not an image")
    rows = [llava(answer=f"answer {i}", image=name) for i, name in enumerate(names)]
    return write(tmp_path / "rows.json", rows)


def test_a_broken_image_in_an_epoch_is_replaced_by_the_next_good_row(tmp_path):
    spec = broken_in_the_middle(tmp_path)
    dataset, other = everything(spec), everything(spec)
    assert dataset.report.bad == 0
    answers = [dataset[i].messages[1]["content"] for i in range(6)]
    assert answers == [f"answer {i}" for i in (0, 1, 4, 4, 4, 5)]
    backwards = [other[i].messages[1]["content"] for i in (3, 2)]
    assert backwards == ["answer 4"] * 2, "in whatever order they are read"
    assert dict(dataset.report.reasons) == {"broken image": 2}
    assert dataset.report.examples["broken image"] == ["row 2", "row 3"]
    assert dataset.report.total == 6 and dataset.report.good == 4


def test_images_are_checked_up_front_when_asked(tmp_path):
    spec = broken_in_the_middle(tmp_path)
    dataset = everything(spec, check_images=True)
    assert len(dataset) == 4 and dataset.report.reasons["broken image"] == 2
    with pytest.raises(UserError, match=r"broken image: row 2 .*, row 3"):
        everything(spec, check_images=True, on_bad_row="refuse")


def test_an_image_that_vanishes_later_is_no_crash_either(tmp_path):
    folder_of_images(tmp_path, 2)
    dataset = everything(
        write(tmp_path / "rows.json", [llava(answer=str(i), image=f"{i}.png") for i in range(2)])
    )
    (tmp_path / "1.png").unlink()
    assert dataset[1].messages[1]["content"] == "0"
    assert dict(dataset.report.reasons) == {"missing image": 1}
    (tmp_path / "0.png").unlink()
    with pytest.raises(UserError, match="no row can be used any more"):
        dataset[0]


def test_what_a_worker_finds_broken_is_in_the_report_of_the_main_process(tmp_path):
    from torch.utils.data import DataLoader

    dataset = everything(broken_in_the_middle(tmp_path))
    stream = [[0, 1, 2], [3, 4, 5]]
    loader = DataLoader(dataset, batch_sampler=stream, collate_fn=list, num_workers=1)
    assert sum(len(batch) for batch in loader) == 6
    assert dataset.report.reasons["broken image"] == 2


def test_a_dataset_can_be_pickled(tmp_path):
    dataset = everything(broken_in_the_middle(tmp_path))
    again = pickle.loads(pickle.dumps(dataset))
    assert again[1].messages == dataset[1].messages


class WordProcessor:
    """Five tokens for an image, one for a word."""

    def encode(self, messages, image_count):
        length = sum(len(m["content"].split()) for m in messages) + 4 * image_count
        return [0] * length, [0] * length


def test_rows_that_are_too_long_are_bad_rows(tmp_path):
    rows = [llava("short", "answer", id=i) for i in range(3)] + [
        llava("a " * 30, "long"),
        llava("q", "a b c d e"),
    ]
    spec = write(tmp_path / "rows.json", rows)
    dataset = everything(spec)
    dataset.limit_length(WordProcessor(), 6)
    assert dataset[3].messages[0]["content"] == "q"
    assert dict(dataset.report.reasons) == {"too long": 1}
    refusing = everything(spec, on_bad_row="refuse")
    refusing.limit_length(WordProcessor(), 31)
    with pytest.raises(UserError, match="too long: row 3"):
        refusing.limit_length(WordProcessor(), 30)


def test_the_split_keeps_rows_about_one_image_together(tmp_path):
    names = folder_of_images(tmp_path, 90)
    rows = [llava(answer=f"{i}", image=names[i % 90], id=i) for i in range(180)]
    spec = write(tmp_path / "rows.json", rows)
    train, test = load_data(spec, "train"), load_data(spec, "test", seed=5)
    answers = [{s.messages[1]["content"] for s in split} for split in (train, test)]
    assert len(answers[0]) + len(answers[1]) == 180 and not answers[0] & answers[1]
    assert 2 <= len(test) <= 24
    images = [{int(a) % 90 for a in part} for part in answers]
    assert not images[0] & images[1]
    assert len(everything(spec)) == 180


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_neither_split_is_empty_however_small_the_data(tmp_path, count):
    spec = write(tmp_path / "rows.json", [llava("q", "a", id=i) for i in range(count)])
    train, test = load_data(spec, "train"), load_data(spec, "test")
    assert len(train) >= 1 and len(test) >= 1
    assert count == 1 or len(train) + len(test) == count


def test_evaluation_set_is_spread_over_the_data(tmp_path):
    dataset = everything(write(tmp_path / "rows.json", [llava("q", str(i)) for i in range(10)]))
    assert [s.messages[1]["content"] for s in dataset.evaluation_set(3)] == ["0", "4", "9"]
    assert len(dataset.evaluation_set(100)) == 10


def test_contrastive_pairs_come_from_rows_with_images(tmp_path):
    folder_of_images(tmp_path)
    rows = [llava("q", "text"), llava(answer="red", image="0.png"), llava(answer="red", image="1.png")]
    dataset = everything(write(tmp_path / "rows.json", rows))
    image, text, number = dataset.contrastive_pair(0)
    assert text == "red" and image.size == (6, 4)
    assert 0 <= number < 2**63 and dataset.contrastive_pair(2)[2] == number
    with pytest.raises(UserError, match="no images"):
        everything(write(tmp_path / "text.json", rows[:1])).contrastive_pair(0)


def test_image_folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    folder_of_images(tmp_path / "pictures")
    spec = write(tmp_path / "rows.json", [llava(image="0.png")])
    assert len(everything(spec, image_folder=tmp_path / "pictures")) == 1
    with pytest.raises(UserError, match=r"image folder .* doesn't exist"):
        everything(spec, image_folder=tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no row can be used\n.*\n.*missing image"):
        everything(spec)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "[]", "a.json has no rows"),
        ("a.jsonl", "\n", "a.jsonl has no rows"),
        ("a.json", "{}", "holds no list of rows but one dict"),
        ("a.json", "[1", "not valid JSON"),
        ("a.json", '{"a": 1}\n{"a": 2}', "should be called .jsonl"),
        ("a.csv", "x", "data files end in .json, .jsonl, .parquet"),
    ],
)
def test_files_that_hold_no_rows(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_data(str(tmp_path / name))


def test_binary_rubbish_is_no_json(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"can't be read|not valid JSON"):
        load_data(str(tmp_path / "a.json"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", "did you mean digits"),
        ("emojis", "did you mean emoji"),
        ("zebra", "built in are digits and emoji"),
        ("", "built in are"),
        ("absent.json", "no file or folder absent.json"),
        ("./absent", "no file or folder ./absent"),
        ("some/deep/path", "no file or folder some/deep/path"),
        ("x" * 5000, "built in are"),
        ("zero\0byte", "built in are"),
    ],
)
def test_unknown_data(spec, message):
    with pytest.raises(UserError, match=message):
        load_data(spec)


def test_wrong_options():
    with pytest.raises(UserError, match="on_bad_row"):
        load_data("digits", on_bad_row="explode")
    with pytest.raises(UserError, match="split"):
        load_data("digits", "validation")
    assert load_data("emoji", "test", 3).split == "test"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
turns = st.fixed_dictionaries(
    {},
    optional={
        "from": st.sampled_from(["human", "gpt", "system", "nobody"]) | json_values,
        "role": st.sampled_from(["user", "assistant"]) | json_values,
        "value": st.sampled_from(["<image>", "x", ""]) | json_values,
        "content": st.sampled_from(["<image>", "x", [{"type": "image"}], [{"type": "text"}]]) | json_values,
        "user": json_values,
        "assistant": json_values,
    },
)
conversations = (
    st.lists(turns | json_values, max_size=4) | st.lists(turns, max_size=4).map(json.dumps) | json_values
)
images = (
    st.sampled_from(["0.png", "no.png", ["0.png", "0.png"], {"bytes": None}, {"path": "0.png"}]) | json_values
)
user_rows = json_values | st.fixed_dictionaries(
    {},
    optional={
        "id": json_values,
        "conversations": conversations,
        "messages": conversations,
        "texts": conversations,
        "image": images,
        "images": images,
    },
)


@given(user_rows)
@settings(max_examples=150, deadline=None)
def test_any_row_is_read_or_bad(row):
    try:
        read = read_row(row)
    except BadRow as error:
        assert error.reason and "\n" not in error.reason
    else:
        assert any(m["role"] == "assistant" for m in read.messages)
        assert sum(m["content"].count("<image>") for m in read.messages) == len(read.images)


@given(st.lists(user_rows, max_size=6), st.sampled_from([".json", ".jsonl"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_file_is_counted_whole_and_never_crashes(tmp_path, rows, suffix):
    folder_of_images(tmp_path, 1)
    path = tmp_path / f"any{suffix}"
    rows = [*rows, llava("q", "a")]
    text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
    path.write_text(text, encoding="utf-8")
    dataset = everything(str(path))
    assert dataset.report.total == len(rows)
    assert len(dataset) == dataset.report.good
    stream = IndexStream.over(dataset, 0, 3)
    for index in stream.batch(0):
        assert dataset[index].messages
    assert str(dataset.report)
