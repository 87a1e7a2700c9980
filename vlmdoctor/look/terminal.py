"""Samples in a terminal: a line for each speaker, brackets around what is learned, images in blocks."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.columns import Columns
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from vlmdoctor.look.findings import data_findings
from vlmdoctor.look.samples import Look, Token, Turn
from vlmdoctor.look.summary import notes, shares, stop_line, visible
from vlmdoctor.plain_text import plain_line, without_commands
from vlmdoctor.reporters.card import GLYPHS
from vlmdoctor.reporters.full import STYLES as FINDING_STYLES
from vlmdoctor.rules.places import counted

if TYPE_CHECKING:
    import PIL.Image

    from vlmdoctor.evidence.data import Data

STYLES = {
    "system": "magenta",
    "user": "cyan",
    "assistant": "green",
    "stop": "bold yellow",
    "image": "blue",
    "padding": "dim",
    "marker": "dim",
    "other": "",
}
LEARNED = "bold underline"
OPEN, CLOSE = "⟦", "⟧"
PREVIEW_WIDTH, PREVIEW_HEIGHT = 32, 16  # in characters; each is two pixels high
MOST_IMAGES = 4
LONGEST, HEAD, TAIL = 160, 100, 40  # tokens of a stretch that is not learned
RAMP = " .:-=+*#%@"


def render(looks: Sequence[Look], data: Data, target: str, *, color: bool, width: int) -> str:
    """The samples as text, `width` columns wide, with ANSI colours where `color`."""
    stream = io.StringIO()
    console = Console(
        file=stream,
        width=max(width, 50),
        force_terminal=color,
        color_system="truecolor" if color else None,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
    )
    for look in looks:
        _print_sample(console, look, color)
    _print_summary(console, looks, data, target)
    return without_commands("\n".join(line.rstrip() for line in stream.getvalue().split("\n")))


def _print_sample(console: Console, look: Look, color: bool) -> None:
    row = look.row
    parts = [counted(row.length, "token"), counted(len(look.images), "image")]
    if row.labels is None:
        parts.append("no labels")
    else:
        parts.append(f"{look.supervised} learned ({look.supervised / max(1, len(row.ids)):.0%})")
    console.print(Rule(Text(f"{look.name}: {', '.join(parts)}", style="bold"), align="left", style="dim"))
    if look.images:
        shown = look.images[:MOST_IMAGES]
        console.print()
        console.print(Padding(Columns([preview(i, color) for i in shown], padding=(0, 2)), (0, 0, 0, 2)))
        sizes = ", ".join(f"{image.width} x {image.height}" for image in shown)
        more = f", and {len(look.images) - len(shown)} more" if len(look.images) > len(shown) else ""
        console.print(Text(f"  {sizes} pixels{more}", style="dim"))
    for note in look.notes:
        console.print(Text(f"  {note}", style="dim"))
    console.print()
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, min_width=9)
    table.add_column(ratio=1)
    for turn in look.turns:
        label = "text" if turn.speaker == "other" else turn.speaker
        table.add_row(Text(label, style=STYLES[turn.speaker]), turn_text(turn))
    console.print(Padding(table, (0, 0, 0, 2)))
    console.print()


def turn_text(turn: Turn) -> Text:
    """A turn with brackets around what is learned; long stretches that are not are shortened."""
    text, open_ = Text(), False
    for token in _shortened(turn.tokens):
        if token.supervised != open_:
            text.append(OPEN if token.supervised else CLOSE, style="bold green")
            open_ = token.supervised
        style = STYLES[token.role] + (f" {LEARNED}" if token.supervised else "")
        text.append(_shown(token), style=style.strip())
    if open_:
        text.append(CLOSE, style="bold green")
    return text


def _shown(token: Token) -> str:
    if token.role == "image":
        return f"▣ {visible(token.text)}×{token.count} "
    if token.role == "padding":
        return f" {visible(token.text)}×{token.count}"
    return visible(token.text)


def _shortened(tokens: Sequence[Token]) -> Iterator[Token]:
    start = 0
    while start < len(tokens):
        end = start
        while end < len(tokens) and tokens[end].supervised == tokens[start].supervised:
            end += 1
        stretch = tokens[start:end]
        if len(stretch) > LONGEST and not stretch[0].supervised:
            yield from stretch[:HEAD]
            yield Token(-1, f" … {len(stretch) - HEAD - TAIL} tokens … ", "marker", False)
            stretch = stretch[-TAIL:]
        yield from stretch
        start = end


def preview(image: PIL.Image.Image, color: bool) -> RenderableType:
    """An image in half blocks, two pixels to a character; without colour in characters of its brightness."""
    import PIL.Image

    scale = min(PREVIEW_WIDTH / image.width, 2 * PREVIEW_HEIGHT / image.height)
    width = max(1, round(image.width * scale))
    lines = max(1, round(image.height * scale / 2))
    resample = PIL.Image.Resampling.NEAREST if scale >= 1 else PIL.Image.Resampling.BOX
    if not color:
        grey = image.convert("L").resize((width, lines), resample)
        rows: list[list[Any]] = [[grey.getpixel((x, y)) for x in range(width)] for y in range(lines)]
        return Text("\n".join("".join(RAMP[int(v) * len(RAMP) // 256] for v in row) for row in rows))
    small = image.convert("RGB").resize((width, 2 * lines), resample)
    pixel_at: Any = small.getpixel  # three numbers, since it has three bands
    text = Text(no_wrap=True)
    for y in range(0, 2 * lines, 2):
        for x in range(width):
            upper, lower = (f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (pixel_at((x, y + d)) for d in (0, 1)))
            text.append("▀", style=f"{upper} on {lower}")
        if y + 2 < 2 * lines:
            text.append("\n")
    return text


def _print_summary(console: Console, looks: Sequence[Look], data: Data, target: str) -> None:
    rows = [look.row for look in looks]
    console.print(
        Rule(
            Text(f"{plain_line(target)}: {counted(len(rows), 'sample')}", style="bold"),
            align="left",
            style="dim",
        )
    )
    console.print()
    table = Table.grid(padding=(0, 2))
    for justify in ("left", "right", "right", "left"):
        table.add_column(justify=justify, no_wrap=True)
    table.add_row(*(Text(word, style="dim") for word in ("role", "tokens", "learned", "")))
    for share in shares(rows):
        bar = "█" * round(20 * share.part)
        table.add_row(
            Text(share.role, style=STYLES[share.role]),
            f"{share.tokens:,}",
            f"{share.supervised:,}",
            Text(
                f"{bar}{'░' * (20 - len(bar))} {share.part:4.0%}",
                style="green" if share.supervised else "dim",
            ),
        )
    console.print(Padding(table, (0, 0, 0, 2)))
    console.print()
    for line in (stop_line(rows, data), *notes(data)):
        console.print(Text(f"  {line}"))
    for finding in data_findings(data):
        console.print(
            Text(
                f"  {GLYPHS[finding.severity]} {finding.severity}: {finding.message} ({finding.rule})",
                style=FINDING_STYLES[finding.severity],
            )
        )
    console.print(
        Text(f"  {OPEN}…{CLOSE} supervised: in the loss   ▣ image tokens   ⏎ a line break", style="dim")
    )
