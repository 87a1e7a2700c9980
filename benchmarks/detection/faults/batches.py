"""What is in the batch: placeholders, images, labels, ids."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPImageProcessor

from benchmarks.detection.case import Made
from benchmarks.detection.faults.plant import STRANGERS, alter, fault
from benchmarks.detection.variants.batches import pad_a_row
from vlmdoctor.knowledge.config_fields import image_token

COUNT = "image-token* placeholder* IMG* DATA*"
LABELS = "DATA* label* supervis* LOSS*"
NOT_FOUND = -100


@fault(
    "B01-placeholders-truncated",
    families="llava qwen2_5_vl internvl smolvlm minivlm",
    rules=COUNT,
    at="input_ids pixel_values image",
)
def placeholders_truncated(made: Made) -> None:
    """The text is cut in the middle of the image's placeholders, the pixels stay."""
    ids = made.batch["input_ids"]
    keep = int((ids[0] == _image(made)).nonzero()[-1])
    for name, value in made.batch.items():
        if isinstance(value, Tensor) and value.shape[:2] == ids.shape:
            made.batch[name] = value[:, :keep]
    made.batch["labels"][:, 1] = made.batch["input_ids"][:, 1]


@fault(
    "B02-one-placeholder-too-many",
    families="llava qwen2_5_vl internvl smolvlm minivlm",
    rules=COUNT,
    at="input_ids pixel_values image",
)
def one_too_many(made: Made) -> None:
    """One placeholder more than there are features."""
    ids = made.batch["input_ids"]
    last = int((ids[0] == _image(made)).nonzero()[-1])
    ids[0, last + 1] = _image(made)


@fault(
    "B03-no-placeholder",
    families="llava qwen2_5_vl paligemma minivlm",
    rules=COUNT,
    at="input_ids pixel_values image",
)
def no_placeholder(made: Made) -> None:
    """The prompt has no placeholder, the pixels are there."""
    ids = made.batch["input_ids"]
    ids[ids == _image(made)] = 9


@fault(
    "B05-images-of-other-rows",
    families=f"llava gemma3 internvl nanovlm minivlm {STRANGERS}",
    rules="wrong-image IMG* MASK*",
)
def images_of_other_rows(made: Made) -> None:
    """Each row gets the features of the other row's image."""
    alter(made["projector"], lambda out: out.flip(0) if out.shape[0] > 1 else out.flip(1))


@fault(
    "C01-pixels-rescaled-twice",
    families="llava internvl smolvlm",
    rules="IMG* DATA* pixel*",
    at="pixel_values",
)
def rescaled_twice(made: Made) -> None:
    """Pixels from 0 to 1 are divided by 255 again and then normalised: all but one shade."""
    made.more["processor"] = CLIPImageProcessor()
    pixels = (made.batch["pixel_values"].sigmoid() * 255).round() / 255 / 255
    made.batch["pixel_values"] = (pixels - 0.45) / 0.27


@fault(
    "C01-pixels-not-rescaled",
    families="llava internvl qwen2_5_vl",
    rules="IMG* DATA* pixel*",
    at="pixel_values",
)
def not_rescaled(made: Made) -> None:
    """Pixels from 0 to 255 reach the model."""
    made.more["processor"] = CLIPImageProcessor()
    made.batch["pixel_values"] = (made.batch["pixel_values"].sigmoid() * 255).round()


@fault("X-blank-images", families="llava gemma3 qwen2_5_vl", rules="blank-images IMG*", at="pixel_values")
def blank_images(made: Made) -> None:
    """Every pixel is zero: the pictures could not be read."""
    made.batch["pixel_values"] = torch.zeros_like(made.batch["pixel_values"])


@fault(
    "X-nan-pixels",
    families="llava qwen2_5_vl nanovlm",
    rules="non-finite NUM* IMG* DATA*",
    at="pixel_values images",
)
def nan_pixels(made: Made) -> None:
    """A pixel is NaN."""
    name = "images" if "images" in made.batch else "pixel_values"
    made.batch[name].view(-1)[0] = float("nan")


@fault(
    "D02-every-label-masked",
    families="llava qwen2_5_vl nanovlm minivlm",
    rules="nothing-supervised LOSS* DATA*",
    at="labels targets",
)
def every_label_masked(made: Made) -> None:
    """All labels are -100."""
    _labels(made).fill_(NOT_FOUND)


@fault("D06-prompt-supervised", families="minivlm", rules=LABELS, at="labels")
def prompt_supervised(made: Made) -> None:
    """Only padding and image tokens are masked."""
    ids = made.batch["input_ids"]
    labels = ids.masked_fill(ids == _image(made), NOT_FOUND)
    made.batch["labels"] = labels.masked_fill(made.batch["attention_mask"] == 0, NOT_FOUND)


@fault(
    "D07-placeholders-supervised",
    families="llava qwen2_5_vl smolvlm internvl minivlm",
    rules=LABELS,
    at="labels",
)
def placeholders_supervised(made: Made) -> None:
    """labels = input_ids.clone()."""
    made.batch["labels"] = made.batch["input_ids"].clone()


@fault("D08-padding-supervised", families="llava qwen2_5_vl llama", rules=LABELS, at="labels")
def padding_supervised(made: Made) -> None:
    """Padding is not masked in the labels."""
    pad_a_row(made, left=False)
    padded = made.batch["attention_mask"] == 0
    made.batch["labels"][padded] = made.batch["input_ids"][padded]


@fault("D09-labels-of-minus-one", families="llava llama", rules=LABELS, at="labels")
def labels_of_minus_one(made: Made) -> None:
    """Some labels are -1."""
    labels = made.batch["labels"]
    labels[0, -3] = -1


@fault(
    "D10-stop-token-masked",
    families="llava qwen2_5_vl minivlm llama",
    rules="stop-token-not-supervised DATA*",
    at="labels",
)
def stop_token_masked(made: Made) -> None:
    """The token that ends the answer is masked (padding has the same id)."""
    eos = (
        2
        if "minivlm" not in type(made.model).__module__
        else int(made.batch["input_ids"][0][_labels(made)[0] != NOT_FOUND][-1])
    )
    labels = _labels(made)
    labels[labels == eos] = NOT_FOUND


@fault(
    "D14-shifted-twice", families="llava llama qwen2_5_vl minivlm llava_scratch", rules=LABELS, at="labels"
)
def shifted_twice(made: Made) -> None:
    """The collator shifts the labels, and so does the model."""
    labels = made.batch["labels"]
    made.batch["labels"] = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], NOT_FOUND)], dim=1)


@fault("X-not-shifted", families="nanovlm", rules=LABELS, at="targets labels")
def not_shifted(made: Made) -> None:
    """The model does not shift, and neither does the collator: each token has to name itself."""
    ids = made.batch["input_ids"]
    made.batch["targets"] = ids.masked_fill(ids == made.model.image_token_id, NOT_FOUND)


@fault("X-labels-of-another-row", families="llava qwen2_5_vl llama", rules=LABELS, at="labels")
def labels_of_another_row(made: Made) -> None:
    """The rows of the labels are permuted against those of the inputs."""
    made.batch["labels"] = made.batch["labels"].flip(0)


@fault("X-labels-one-row-on", families="gemma3 smolvlm", rules=LABELS, at="labels")
def labels_one_row_on(made: Made) -> None:
    """Three rows, each with the labels of the next, shifted by the collator."""
    for name, value in made.batch.items():
        if isinstance(value, Tensor) and len(value) == 2:
            made.batch[name] = torch.cat([value, value[:1]])
    ids, labels = made.batch["input_ids"], made.batch["labels"]
    words = ids[2, -5:]
    ids[2, -5:] = torch.where(words > 50, words - 40, words + 40)
    labels[2, -5:] = ids[2, -5:]
    made.batch["labels"] = labels.roll(1, dims=0)


@fault(
    "C01-pixels-not-rescaled-no-processor", families="llava gemma3", rules="IMG* pixel*", at="pixel_values"
)
def not_rescaled_without_a_processor(made: Made) -> None:
    """Pixels from 0 to 255 reach the model, and nobody handed in the processor."""
    made.batch["pixel_values"] = (made.batch["pixel_values"].sigmoid() * 255).round()


@fault(
    "C01-pixels-rescaled-twice-no-processor",
    families="paligemma qwen2_5_vl",
    rules="IMG* pixel*",
    at="pixel_values",
)
def rescaled_twice_without_a_processor(made: Made) -> None:
    """Pixels are divided by 255 twice, and normalised with 0.5 and 0.5; there is no processor."""
    pixels = (made.batch["pixel_values"].sigmoid() * 255).round() / 255 / 255
    made.batch["pixel_values"] = (pixels - 0.5) / 0.5


@fault(
    "A16-id-beyond-the-embeddings",
    families="llava llama qwen2_5_vl",
    rules="CFG* DATA*",
    at="input_ids embed",
)
def id_beyond_the_embeddings(made: Made) -> None:
    """A token was added, and the embeddings were not resized."""
    made.batch["input_ids"][0, -3] = made.model.get_input_embeddings().weight.shape[0]


@fault("A15-label-beyond-the-head", families="llava llama", rules="CFG* DATA* LOSS*", at="labels lm_head")
def label_beyond_the_head(made: Made) -> None:
    """A label has no row in the head."""
    made.batch["labels"][0, -3] = made.model.lm_head.weight.shape[0] + 3


@fault(
    "A19-longer-than-the-context",
    families="llama llava gpt2",
    rules="CFG* DATA* ROPE* length* context*",
    at="",
    max_position_embeddings=8,
    n_positions=8,
    text_config={"max_position_embeddings": 8},
)
def longer_than_the_context(made: Made) -> None:
    """The sequence is longer than max_position_embeddings."""


@fault(
    "A11-image-size",
    families="llava internvl llava_scratch",
    rules="CFG* IMG* forward-raises",
    at="pixel_values images position embeddings vision",
)
def image_size(made: Made) -> None:
    """The images are smaller than the tower's position table."""
    name = "images" if "images" in made.batch else "pixel_values"
    made.batch[name] = made.batch[name][..., :24, :24].contiguous()


@fault("B12-aspect-ratio-ids-dropped", families="mllama", rules="CFG* IMG* DATA* forward-raises", at="")
def aspect_ratios_dropped(made: Made) -> None:
    """The collator drops aspect_ratio_ids."""
    made.batch.pop("aspect_ratio_ids")


@fault(
    "B13-pixels-dropped",
    families="llava qwen2_5_vl smolvlm minivlm",
    rules=f"{COUNT} no-gradient",
    at="pixel_values vision image",
)
def pixels_dropped(made: Made) -> None:
    """The image column vanished (remove_unused_columns), the placeholders stay."""
    for name in ("pixel_values", "image_grid_thw", "pixel_attention_mask"):
        made.batch.pop(name, None)


@fault(
    "E08-text-alone-with-a-trainable-tower",
    families="llava qwen2_5_vl minivlm",
    rules="no-gradient IMG* DATA*",
    at="part:vision",
)
def text_alone(made: Made) -> None:
    """The batch holds text alone, and the tower is meant to learn."""
    ids = made.batch["input_ids"]
    ids[ids == _image(made)] = 9
    pixels_dropped(made)
    if "mm_token_type_ids" in made.batch:
        made.batch["mm_token_type_ids"] = torch.zeros_like(ids)


def _image(made: Made) -> int:
    return image_token(made.model.config)


def _labels(made: Made) -> Tensor:
    return made.batch["targets" if "targets" in made.batch else "labels"]
