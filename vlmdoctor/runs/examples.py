"""What a trained model says about a few pictures that it has never seen, kept in its run folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmdoctor import boundary
from vlmdoctor.errors import UserError
from vlmdoctor.output_file import write_whole

if TYPE_CHECKING:
    from minivlm.train_config import TrainConfig

FOLDER, LIST = "examples", "examples.json"
HOW_MANY = 10
MOST_TOKENS = 32
MOST_LIST = 4 << 20  # bytes of examples.json
_TEXTS = ("question", "answer", "prediction", "kind", "image")


def ask_examples(run_folder: Path, config: TrainConfig) -> list[dict[str, Any]]:
    """Loads the run's newest checkpoint, as its user will, and asks it about test pictures.

    Writes `examples/0.png` and so on, and `examples/examples.json`.

    Returns:
        `question`, `answer` (the right one), `prediction`, `kind` and `image` (its path in the run folder).
    """
    import numpy as np
    import PIL.Image

    from minivlm.generate import Answerer, find
    from minivlm.task import load_test_data

    test = load_test_data(config.test_data or config.data, config.test_data is not None, config.on_bad_row)
    asked = [sample for sample in test.evaluation_set(20 * HOW_MANY) if _is_one_question(sample)][:HOW_MANY]
    if not asked:
        return []
    folder = run_folder / FOLDER
    folder.mkdir(exist_ok=True)
    answerer = Answerer(find(str(run_folder)), config.device)
    found = []
    for number, sample in enumerate(asked):
        array = sample.images[0]
        picture = PIL.Image.fromarray(array) if isinstance(array, np.ndarray) else array
        picture.convert("RGB").save(folder / f"{number}.png")
        question = sample.messages[0]["content"].replace("<image>", "").strip()
        found.append(
            {
                "question": question,
                "answer": sample.messages[1]["content"].strip(),
                "prediction": answerer.answer(question, [folder / f"{number}.png"], MOST_TOKENS),
                "kind": sample.kind,
                "image": f"{FOLDER}/{number}.png",
            }
        )

    write_whole(folder / LIST, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    return found


def _is_one_question(sample: Any) -> bool:
    roles = [message["role"] for message in sample.messages]
    return len(sample.images) == 1 and roles == ["user", "assistant"]


def read_examples(run_folder: Path) -> list[dict[str, Any]]:
    """The examples of a run folder whose values are all texts; none where it has none."""
    try:
        read = boundary.read_json(run_folder / FOLDER / LIST, MOST_LIST)
    except UserError:
        return []
    entries = read if isinstance(read, list) else []
    return [
        entry
        for entry in entries[: 10 * HOW_MANY]
        if isinstance(entry, dict) and all(isinstance(entry.get(name, ""), str) for name in _TEXTS)
    ]
