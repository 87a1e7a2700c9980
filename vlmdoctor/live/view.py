"""How a run looks in a terminal: a few lines of text made of a `LiveState`, at any width."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.cells import cell_len
from rich.text import Text

from vlmdoctor.finding import Severity
from vlmdoctor.knowledge.parameter_names import ROLES, layer_of, role_of
from vlmdoctor.live.spark import UNICODE, Signs, figure, small, sparkline
from vlmdoctor.live.state import LiveState, Part
from vlmdoctor.plain_text import plain_line
from vlmdoctor.reporters.card import card_of
from vlmdoctor.runs.numbers import clock, count, percent

# Named colours, which every terminal has in a shade that is readable on its own background.
ROLE_STYLES = dict(zip(ROLES, ("cyan", "yellow", "green", "magenta", "white"), strict=True))
GLYPHS = {
    Severity.ERROR: ("✗", "bold red"),
    Severity.WARNING: ("!", "bold yellow"),
    Severity.INFO: ("i", "blue"),
}
HEALTHY_RATIO = (1e-4, 1e-2)
NARROWEST, WIDEST = 50, 120
LABEL = 13
MOST_FINDINGS = 4


def draw(state: LiveState, width: int, signs: Signs = UNICODE) -> Text:
    """The run as text of at most `width` columns."""
    width = max(NARROWEST, min(width, WIDEST))
    lines = list(_lines(state, width, signs))
    for line in lines:
        if line.cell_len > width:
            line.truncate(width, overflow="ellipsis" if signs is UNICODE else "crop")
    return Text("\n", no_wrap=True).join(lines)


def _lines(state: LiveState, width: int, signs: Signs) -> Iterator[Text]:
    yield _spread(
        Text.assemble((" vlmdoctor train", "bold"), "  ", plain_line(state.title)),
        Text(plain_line(state.place), "dim"),
        width,
    )
    yield from _model(state, width)
    yield Text()
    yield _progress(state, width, signs)
    if not state.parts:
        return
    yield Text()
    yield from _curves(state, width, signs)
    yield from _parts(state, width, signs)
    yield Text()
    yield from _answers(state, width, signs)
    yield _speed(state)
    yield from _findings(state, width, signs)


def _spread(left: Text, right: Text, width: int) -> Text:
    gap = width - left.cell_len - right.cell_len
    return Text.assemble(left, " " * gap, right) if gap >= 2 else left


def _model(state: LiveState, width: int) -> Iterator[Text]:
    line = Text(" ")
    for part in _in_order(state):
        piece = Text.assemble(
            (part.role, ROLE_STYLES[part.role]), f" {count(part.parameters)} ", (f"[{part.state}]", "dim")
        )
        if line.cell_len + piece.cell_len + 3 > width and line.cell_len > 1:
            yield line
            line = Text(" ")
        line = Text.assemble(line, "   " if line.cell_len > 1 else "", piece)
    if line.cell_len > 1:
        yield line


def _in_order(state: LiveState) -> list[Part]:
    return sorted(state.parts.values(), key=lambda part: ROLES.index(part.role))


def _progress(state: LiveState, width: int, signs: Signs) -> Text:
    if state.step is None:
        return Text(f" {state.phase} …" if signs is UNICODE else f" {state.phase} ...")
    at = f" step {state.step + 1:,}"
    if not state.total_steps:
        return Text(f"{at}   {clock(state.seconds)}")
    at += f" of {state.total_steps:,}"
    left = state.seconds_left
    ends = f"{100 * state.done:3.0f}%  "
    if (activity := state.activity) != "training":
        ends += activity
    elif left is not None:
        ends += f"{clock(left)} left"
    columns = max(width - cell_len(at) - 22, 8)
    filled = int(state.done * columns)
    bar = signs.full * filled
    head = signs.head if filled < columns else ""
    rest = signs.empty * (columns - filled - len(head))
    return Text.assemble((at, "bold"), "  ", (bar + head, "green"), (rest, "dim"), "  ", ends)


def _curves(state: LiveState, width: int, signs: Signs) -> Iterator[Text]:
    columns = width - LABEL - 30
    lr = f"lr {state.lr:.1e}" if state.lr is not None else ""
    # On a log scale the plateau and the way out of it both show, beside the fall of the first steps.
    bars = sparkline(state.loss.values, columns, signs, log=True)
    yield _curve("loss", state.loss.last, bars, columns, lr)
    clipped = f"clipped to {state.clip:g}" if state.clip else ""
    bars = sparkline(state.norm.values, columns, signs, log=True)
    yield _curve("gradient", state.norm.last, bars, columns, clipped)


def _curve(label: str, value: float | None, bars: str, columns: int, note: str) -> Text:
    shown = Text(figure(value), _bad(value) or "bold")
    return Text.assemble(
        _label(label), shown, " " * (9 - shown.cell_len), bars.ljust(columns), "  ", (note, "dim")
    )


def _parts(state: LiveState, width: int, signs: Signs) -> Iterator[Text]:
    if not any(part.norm.values for part in state.parts.values()):
        if state.parts and state.step is not None and not state.watched:
            yield Text("   gradients by part are measured with --watch-grads", "dim")
        return
    columns = max((width - LABEL - 30) // 2 - 1, 6)
    yield Text()
    yield Text(f"{'':{LABEL}}{'gradient norm':{columns + 11}}update / weights", "dim")
    layers = _layer_bars(state, signs)
    for part in _in_order(state):
        style = ROLE_STYLES[part.role]
        if not part.trainable and part.parameters:
            yield Text.assemble(_label(part.role, style), ("frozen", "dim"))
            continue
        norm, ratio = part.norm.last, part.ratio.last
        bars = sparkline(part.norm.values, columns, signs, log=True)
        moves = sparkline(part.ratio.values, columns, signs, log=True)
        yield Text.assemble(
            _label(part.role, style),
            (f"{_gradient(norm):9}", _bad(norm) or ("bold red" if not norm else "")),
            (f"{bars:{columns}}  ", style),
            (f"{small(ratio):9}", _bad(ratio)),
            (f"{moves:{columns}}  ", style),
            (_range(ratio), "dim"),
        )
    yield from layers


def _gradient(norm: float | None) -> str:
    if norm is None:
        return "none"
    return "zero" if norm == 0 else figure(norm)


def _range(ratio: float | None) -> str:
    if ratio is None or not math.isfinite(ratio):
        return ""
    low, high = HEALTHY_RATIO
    return "low" if ratio < low else "high" if ratio > high else "in range"


def _layer_bars(state: LiveState, signs: Signs) -> Iterator[Text]:
    """`layers   vision 0 ▃▂ 1   language 0 ▇▅▃▂ 3`: one bar for each layer, all on one scale."""
    stacks: dict[str, list[tuple[int, float]]] = {}
    for name, norm in state.layers.items():
        number = layer_of(name)[1]
        value = float(norm) if isinstance(norm, int | float) else math.nan
        stacks.setdefault(role_of(name), []).append((number or 0, value))
    norms = [norm for layers in stacks.values() for _, norm in layers]
    if not norms:
        return
    scale = sparkline(norms, len(norms), signs, log=True)
    line, at = Text.assemble(_label("layers")), 0
    placed = {}
    for role, layers in stacks.items():
        placed[role] = [(number, scale[at + i]) for i, (number, _) in enumerate(layers)]
        at += len(layers)
    for role in sorted(placed, key=ROLES.index):
        bars = "".join(bar for _, bar in sorted(placed[role]))
        last = max(number for number, _ in placed[role])
        line.append_text(Text.assemble((f"{role} ", "dim"), "0 ", (bars, ROLE_STYLES[role]), f" {last}   "))
    yield line


def _answers(state: LiveState, width: int, signs: Signs) -> Iterator[Text]:
    record = state.evaluation
    accuracy, shuffled = record.get("accuracy"), record.get("accuracy_shuffled")
    if not isinstance(accuracy, int | float):
        return
    line = Text.assemble(_label("accuracy"), (percent(accuracy), "bold"))
    if isinstance(shuffled, int | float):
        line = Text.assemble(line, "   ", (percent(shuffled), "bold"), " with shuffled images")
    after = record.get("step")
    note = f"after step {after + 1:,}" if isinstance(after, int) else ""
    bars = sparkline(state.accuracies.values, 12, signs) if len(state.accuracies.values) > 1 else ""
    yield _spread(Text.assemble(line, "   ", (bars, "cyan")), Text(note, "dim"), width)


def _speed(state: LiveState) -> Text:
    parts = []
    if state.tokens_per_s is not None:
        parts.append(f"{state.tokens_per_s:,.0f} tokens/s")
    if state.memory_mb is not None:
        gigabytes = state.memory_mb / 1024
        parts.append(f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{state.memory_mb:.0f} MB")
    if state.mfu is not None:
        parts.append(f"{percent(state.mfu)} of the peak FLOPs")
    parts.append(f"{clock(state.seconds)} so far")
    return Text.assemble(_label("speed"), "   ".join(parts))


def _findings(state: LiveState, width: int, signs: Signs) -> Iterator[Text]:
    noticed = list(state.noticed.values())
    open_now = sorted((n for n in noticed if n.gone is None), key=lambda n: -n.finding.severity.rank)
    passed = [n for n in noticed if n.gone is not None]
    if not noticed:
        return
    yield Text()
    for item in open_now[:MOST_FINDINGS]:
        finding = item.finding
        glyph, style = GLYPHS[finding.severity]
        glyph = glyph if signs is UNICODE or glyph != UNICODE.error else signs.error
        since = f" from step {finding.step:,}" if finding.step is not None else ""
        words = Text.assemble((f" {glyph} {finding.severity}", style), f"{since}: {finding.message}")
        rule = Text(f"  {finding.rule} {finding.code}", "dim")
        if words.cell_len + rule.cell_len <= width:
            yield _spread(words, rule, width)
        else:
            yield from _folded(words, width)
        fix = card_of(finding).fix
        if item is open_now[0] and fix:
            # The view has few lines: what to do about the worst finding is the one that is needed.
            yield from _folded(Text(f"   fix  {fix}"), width)
    if len(open_now) > MOST_FINDINGS:
        yield Text(f"   and {len(open_now) - MOST_FINDINGS} more", "dim")
    for item in passed[-2:]:
        yield Text(f"   withdrawn at step {item.gone or 0:,}: {item.finding.message}", "dim")


def _folded(words: Text, width: int) -> list[Text]:
    """A long sentence on two lines, the second one indented."""
    if words.cell_len <= width:
        return [words]
    cut = words.plain.rfind(" ", 0, width)
    cut = cut if cut > width // 2 else width
    first, second = words.divide([cut])
    return [first, Text.assemble("   ", Text(second.plain.strip()))]


def _label(words: str, style: str = "dim") -> Text:
    return Text(f" {words}".ljust(LABEL), style)


def _bad(value: float | None) -> str:
    return "bold red" if value is not None and not math.isfinite(value) else ""
