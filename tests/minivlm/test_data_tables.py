"""Rows in tables: MiniMind-V's parquet, and datasets of the `datasets` library."""

from __future__ import annotations

import json
import sys

import pytest
from data_rows import folder_of_images, image_bytes

from minivlm.data import IndexStream, load_data, sources
from minivlm.errors import UserError

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402


def conversation(i, text="<image>\nwhat?"):
    return json.dumps([{"role": "user", "content": text}, {"role": "assistant", "content": f"answer {i}"}])


def answers(dataset):
    return [sample.messages[1]["content"] for sample in dataset]


def everything(spec, **options):
    return load_data(str(spec), hold_out=False, **options)


def test_minimind_parquet(tmp_path):
    path = tmp_path / "sft.parquet"
    rows = {
        "conversations": [conversation(i) for i in range(10)]
        + ["broken", conversation(11), conversation(12)],
        "image_bytes": [image_bytes()] * 10 + [image_bytes(), None, b"no image"],
    }
    pq.write_table(pa.table(rows), path, row_group_size=4)
    dataset = everything(path)
    assert dict(dataset.report.reasons) == {"no conversation": 1, "more placeholders than images": 1}
    assert len(dataset) == 11 and dataset.blocks == (4, 4, 2, 1)
    assert answers(dataset) == [f"answer {i}" for i in range(10)] + ["answer 0"]
    assert dict(dataset.report.reasons)["broken image"] == 1
    assert dataset[3].images[0].size == (6, 4)


def test_lists_of_images_and_rows_of_text_alone(tmp_path):
    path = tmp_path / "sft.parquet"
    rows = {
        "conversations": [
            conversation(0, "<image><image>"),
            conversation(1),
            conversation(2),
            conversation(3, "hi"),
        ],
        "image_bytes": [[image_bytes()] * 2, [image_bytes("blue")], [image_bytes()] * 3, None],
    }
    pq.write_table(pa.table(rows), path)
    dataset = everything(path)
    assert answers(dataset) == ["answer 0", "answer 1", "answer 3"]
    assert [len(s.images) for s in dataset] == [2, 1, 0]
    assert dict(dataset.report.reasons) == {"fewer placeholders than images": 1}


def test_structured_conversations_and_images_by_path(tmp_path):
    folder_of_images(tmp_path)
    turns = [
        [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": f"answer {i}"}] for i in range(2)
    ]
    rows = {"id": ["a", "b"], "conversations": turns, "image": ["0.png", "absent.png"]}
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    dataset = everything(tmp_path / "rows.parquet")
    assert answers(dataset) == ["answer 0"]
    assert dataset.report.examples["missing image"] == ["row 1, id b (absent.png)"]


def test_a_folder_of_parquet_files(tmp_path):
    for part in range(3):
        table = pa.table({"conversations": [conversation(part * 2 + i, "hi") for i in range(2)]})
        pq.write_table(table, tmp_path / f"part-{part}.parquet")
    dataset = everything(tmp_path)
    assert answers(dataset) == [f"answer {i}" for i in range(6)]
    assert dataset.blocks == (2, 2, 2)


def test_few_row_groups_are_read_in_an_epoch(tmp_path, monkeypatch):
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.table({"conversations": [conversation(i, "hi") for i in range(200)]}), path, row_group_size=10
    )
    dataset = everything(path)
    sources._read_group.cache_clear()
    stream = IndexStream.over(dataset, seed=0, batch_size=8)
    seen = [answer for step in range(25) for answer in answers(dataset[i] for i in stream.batch(step))]
    assert sorted(seen) == sorted(f"answer {i}" for i in range(200))
    assert sources._read_group.cache_info().misses == 20, "each row group once"


def test_images_are_not_read_to_check_rows(tmp_path):
    """Stand-ins take their place, which is what keeps checking a large table cheap."""
    table = pa.table({"conversations": [conversation(0)], "image_bytes": [image_bytes()], "other": [1]})
    (row,) = sources._cheap_rows(table)
    assert row == {"conversations": conversation(0), "image_bytes": sources.STAND_IN}


def test_tables_that_hold_no_conversations(tmp_path):
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"no column conversations .*its columns are text"):
        load_data(str(tmp_path / "rows.parquet"))
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="can't be read as parquet"):
        load_data(str(tmp_path / "broken.parquet"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no parquet files"):
        load_data(str(tmp_path / "empty"))
    (tmp_path / "empty" / "rows.jsonl").write_text("")
    with pytest.raises(UserError, match=r"name the file itself, such as .*rows.jsonl"):
        load_data(str(tmp_path / "empty"))


def test_a_row_group_that_is_damaged(tmp_path):
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.table({"conversations": [conversation(i, "hi") for i in range(50)]}), path, compression="none"
    )
    content = bytearray(path.read_bytes())
    content[4:40] = b"x" * 36
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"row group 0 of .*rows.parquet can't be read"):
        load_data(str(path))


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    pq.write_table(pa.table({"conversations": [conversation(0)]}), tmp_path / "rows.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"pip install 'vlmdoctor\[data\]'"):
        load_data(str(tmp_path / "rows.parquet"))


def test_without_datasets_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"owner/name .*pip install 'vlmdoctor\[data\]'"):
        load_data("owner/name")


@pytest.fixture
def datasets(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    return library


def rows_for_datasets():
    return {
        "messages": [
            [{"role": "user", "content": "<image>\nwhat?"}, {"role": "assistant", "content": f"answer {i}"}]
            for i in range(4)
        ],
        "images": [
            [{"bytes": data, "path": None}] for data in (image_bytes(), b"broken", image_bytes("blue"))
        ]
        + [[]],
    }


def test_a_dataset_saved_to_disk(tmp_path, datasets):
    features = datasets.Features(
        {
            "messages": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "images": datasets.List(datasets.Image()) if hasattr(datasets, "List") else [datasets.Image()],
        }
    )
    datasets.Dataset.from_dict(rows_for_datasets(), features).save_to_disk(tmp_path / "saved")
    dataset = everything(tmp_path / "saved")
    assert dict(dataset.report.reasons) == {"more placeholders than images": 1}
    assert answers(dataset) == ["answer 0", "answer 2", "answer 2"]
    assert dict(dataset.report.reasons)["broken image"] == 1
    assert dataset[2].images[0].convert("RGB").getpixel((0, 0)) == (0, 0, 255)


def test_a_single_image_column_and_splits_of_its_own(tmp_path, datasets):
    def part(start, count):
        conversations = [conversation(start + i) for i in range(count)]
        images = [{"bytes": image_bytes(), "path": None}] * count
        dataset = datasets.Dataset.from_dict(
            {"conversations": conversations, "image": images, "id": range(count)}
        )
        return dataset.cast_column("image", datasets.Image())

    datasets.DatasetDict({"train": part(0, 5), "test": part(5, 2)}).save_to_disk(tmp_path / "saved")
    train, test = (load_data(str(tmp_path / "saved"), split) for split in ("train", "test"))
    assert answers(train) == [f"answer {i}" for i in range(5)], (
        "nothing is held out where there is a test set"
    )
    assert answers(test) == ["answer 5", "answer 6"]
    assert train[0].images[0].size == (6, 4)


def test_what_the_hub_does_not_have(datasets, monkeypatch):
    def offline(*arguments):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(
        UserError,
        match=r"owner/name is no file or folder, and can't be loaded from the hub either: no network$",
    ):
        load_data("owner/name")


def test_a_dataset_of_the_hub(datasets, monkeypatch):
    asked = []

    def from_hub(*arguments):
        asked.append(arguments)
        return {"train": datasets.Dataset.from_dict({"conversations": [conversation(0, "hi")]})}

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    assert answers(load_data("owner/name:config")) == ["answer 0"]
    assert asked == [("owner/name", "config")]


def test_a_saved_dataset_that_is_incomplete(tmp_path, datasets):
    (tmp_path / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match="can't be loaded"):
        load_data(str(tmp_path))
