"""`minivlm`, which is `python -m minivlm`: train, evaluate, generate, chat and import-minimind."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer

from minivlm.errors import UserError, plain
from minivlm.help_page import CONTEXT, HelpGroup, help_command
from minivlm.options import with_train_options
from minivlm.program import started_as
from minivlm.signals import StopNow, terminable
from minivlm.train_config import TrainConfig

app = typer.Typer(
    name="minivlm",
    help="A small vision-language model: train it, and ask it about pictures.",
    cls=HelpGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=CONTEXT,
)

Checkpoint = Annotated[
    str | None, typer.Argument(help="A checkpoint or run folder; by default the newest under runs/.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
Tokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]


@app.command(
    cls=help_command(
        ("minivlm train", "The tiny model on handwritten digits."),
        ("minivlm train --preset tiny8 --data my.jsonl --out runs/mine", "Your own data."),
        ("minivlm train --resume", "Go on with the newest run under runs/."),
    )
)
@with_train_options
def train(config: TrainConfig) -> None:
    """Trains a model; by default a tiny one on handwritten digits, in about three minutes on two cores."""
    from minivlm.callbacks import ConsoleCallback
    from minivlm.train import train

    with terminable():
        try:
            train(config, [ConsoleCallback()], [*started_as("minivlm"), "train"])
        except StopNow as stop:
            print("minivlm: interrupted before the first step; nothing was trained", file=sys.stderr)
            raise typer.Exit(stop.exit_status) from None


@app.command(
    cls=help_command(
        ("minivlm evaluate", "The newest checkpoint under runs/."),
        ("minivlm evaluate runs/tiny-digits --samples 300", "That run, in less time."),
    )
)
def evaluate(
    checkpoint: Checkpoint = None,
    data: Annotated[str, typer.Option(help="digits, emoji, or your own data.")] = "digits",
    samples: Annotated[int, typer.Option(help="How many questions.", min=1)] = 1200,
    device: Device = "auto",
) -> None:
    """Prints the accuracy on unseen images, with the right images and with shuffled ones."""
    from minivlm.generate import evaluate_checkpoint, find, table

    record = evaluate_checkpoint(find(checkpoint), data, samples, device)
    print(table(record))


@app.command(
    cls=help_command(
        (
            "minivlm generate runs/tiny-digits 'read both digits.' --image photo.png",
            "Ask once.",
        ),
    )
)
def generate(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint or run folder.")],
    question: Annotated[str, typer.Argument(help="What to ask.")],
    image: Annotated[list[Path] | None, typer.Option(help="An image file; may be repeated.")] = None,
    max_tokens: Tokens = 64,
    device: Device = "auto",
) -> None:
    """Answers a question about an image."""
    from minivlm.generate import Answerer, find

    print(Answerer(find(checkpoint), device).answer(question, image or [], max_tokens))


@app.command(
    cls=help_command(("minivlm chat runs/tiny-digits --image photo.png", "Ask until an empty line."))
)
def chat(
    checkpoint: Checkpoint = None,
    image: Annotated[Path | None, typer.Option(help="The image to talk about.")] = None,
    max_tokens: Tokens = 64,
    device: Device = "auto",
) -> None:
    """Answers questions about an image until an empty line; `/image FILE` changes the image."""
    from minivlm.generate import Answerer, find

    answerer = Answerer(find(checkpoint), device)
    images = [] if image is None else [image]
    while line := _asked():
        try:
            if line.startswith("/image"):
                images = [Path(line.removeprefix("/image").strip())]
                answerer.open(images[0])
                continue
            print(answerer.answer(line, images, max_tokens))
        except UserError as error:
            print(error, file=sys.stderr)


@app.command(
    "import-minimind",
    cls=help_command(("minivlm import-minimind sft_vlm.pth runs/mm", "Then: minivlm chat runs/mm")),
)
def import_minimind(
    weights: Annotated[Path, typer.Argument(help="Published MiniMind-V weights, a .pth file.")],
    out: Annotated[Path, typer.Argument(help="The checkpoint folder to write.")],
    preset: Annotated[str, typer.Option(help="minimind-v or minimind-3v.")] = "minimind-v",
    vision_from: Annotated[
        str | None, typer.Option(help="The CLIP or SigLIP checkpoint it was trained with.")
    ] = None,
    tokenizer: Annotated[str | None, typer.Option(help="The tokenizer it was trained with.")] = None,
) -> None:
    """Makes a checkpoint of published MiniMind-V weights and reports, per module, what fitted."""
    from minivlm.minimind import import_minimind

    print(import_minimind(weights, preset, out, vision_from=vision_from, tokenizer=tokenizer))


def _asked() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def run() -> None:
    """Runs the command line and exits: 0 done, 2 not possible, 130 interrupted."""
    logging.basicConfig(format="minivlm: %(message)s", level=logging.WARNING)
    try:
        app()
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): nobody is left to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)
    except UserError as error:
        print(f"minivlm: {error}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        status = getattr(error, "exit_status", None)  # of `Interrupted`, without importing torch to know it
        if status is None:
            traceback.print_exc()
        else:
            print(f"minivlm: {plain(str(error))}", file=sys.stderr)
        sys.exit(status or 2)
