"""The bundled minivlm, in one of its sizes, with a batch of its own data, as a target."""

from __future__ import annotations

from vlmdoctor.subject import Subject
from vlmdoctor.targets.target import Target

BATCH_SIZE = 4
DATA = "digits"


def bundled(text: str, preset: str) -> Target:
    """A fresh minivlm with a real batch and the optimizer that its trainer would use.

    Raises:
        minivlm.errors.UserError: There is no such preset.
    """
    import torch

    import minivlm
    from minivlm.data.collate import Collator
    from minivlm.data.load import load_data
    from minivlm.presets import preset as preset_named

    chosen = preset_named(preset or "tiny")
    model, processor = minivlm.build(chosen.name, seed=0)
    data = load_data(DATA, "train", seed=0)
    collate = Collator(processor, max_length=model.config.max_position_embeddings)
    batch = collate([data[i] for i in range(BATCH_SIZE)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=chosen.training.get("lr", 1e-3))
    facts = {"preset": chosen.name, "data": DATA, "weights": "random"}
    subject = Subject(
        model,
        batch=batch,
        optimizer=optimizer,
        tokenizer=processor.tokenizer,
        processor=processor,
        train_dataset=data,
        data_collator=collate,
    )
    return Target(subject, text, facts)
