"""Samples as one self-contained page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from vlmdoctor.evidence.data import Data
from vlmdoctor.look.findings import data_findings
from vlmdoctor.look.samples import Look, Token, Turn
from vlmdoctor.look.summary import notes, shares, stop_line, visible
from vlmdoctor.plain_text import plain_line
from vlmdoctor.reporters.page_parts import card, document, escape, stylesheet
from vlmdoctor.rules.places import counted

if TYPE_CHECKING:
    import PIL.Image

    from vlmdoctor.finding import Finding

LARGE = 160  # pixels: from here on an image is shrunk and not magnified
LARGEST = 512


def render(looks: Sequence[Look], data: Data, target: str) -> str:
    """The page: what it adds up to first, then sample by sample."""
    rows = [look.row for look in looks]
    learned, tokens = sum(look.supervised for look in looks), sum(len(row.ids) for row in rows)
    padding = sum(row.count("padding") for row in rows)
    images = sum(len(look.images) for look in looks)
    target = plain_line(target)
    title = f"What {target} is given"
    tiles = (
        ("samples", f"{len(looks)}", ""),
        ("tokens", f"{tokens:,}", f"{padding:,} of them padding" if padding else "no padding"),
        ("learned", f"{learned / tokens:.0%}" if tokens else "–", f"{learned:,} tokens"),
        ("images", f"{images}", counted(sum(row.count("image") for row in rows), "image token")),
    )
    body = (
        f"<div class='crumb'><b>vlmdoctor look</b><span>{escape(target)}</span></div>",
        f"<h1>{escape(title)}</h1>",
        "<dl class='tiles'>"
        + "".join(
            f"<div><dt>{n}</dt><dd>{escape(v)}<small>{escape(s)}</small></dd></div>" for n, v, s in tiles
        )
        + "</dl>",
        _findings(data_findings(data)),
        f"<h2>What is in the loss</h2>{_summary(looks, data)}",
        f"<h2>Sample by sample</h2>{_legend()}",
        *(_sample(look) for look in looks),
    )
    return document(title, body, style=stylesheet("look/page.css"))


def _findings(findings: Sequence[Finding]) -> str:
    return "".join(map(card, findings))


def _summary(looks: Sequence[Look], data: Data) -> str:
    rows = [look.row for look in looks]
    table = "".join(
        f"<tr><td class='r-{share.role}'>{share.role}</td><td class='number'>{share.tokens:,}</td>"
        f"<td class='number'>{share.supervised:,}</td><td class='bar'><span class='track'>"
        f"<i style='width:{share.part:.1%}'></i></span>{share.part:.0%}</td></tr>"
        for share in shares(rows)
    )
    stop = stop_line(rows, data)
    bad = " bad" if "does not learn" in stop else ""
    said = f"<p class='say{bad}'>{escape(_sentence(stop))}</p>"
    said += "".join(f"<p class='say'>{escape(_sentence(note))}</p>" for note in notes(data))
    return (
        "<div class='summary'><table><thead><tr><th>role</th><th class='number'>tokens</th>"
        "<th class='number'>learned</th><th>share learned</th></tr></thead>"
        f"<tbody>{table}</tbody></table><div>{said}</div></div>"
    )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _legend() -> str:
    return (
        "<div class='legend'><span><mark>text</mark> learned: in the loss</span>"
        "<span><span class='t-image'>▣ &lt;image&gt; × 196</span> image tokens</span>"
        "<span>⏎ line break</span><span>point at a token for its id</span></div>"
    )


def _sample(look: Look) -> str:
    row = look.row
    parts = [counted(row.length, "token"), counted(len(look.images), "image")]
    parts.append("no labels" if row.labels is None else f"{look.supervised} learned")
    padding = row.count("padding")
    if padding:
        parts.append(f"{padding} padding")
    turns = "".join(_turn(turn) for turn in look.turns)
    pictures = "".join(_figure(image) for image in look.images)
    many = " many" if len(look.images) > 1 else ""
    shown = f"<div class='pictures{many}'>{pictures}</div>" if pictures else ""
    said = "".join(f"<p class='say'><small>{escape(_sentence(note))}</small></p>" for note in look.notes)
    return (
        f"<section class='sample'><h3>{escape(look.name)} <small>{escape(' · '.join(parts))}</small></h3>"
        f"{said}<div class='body'>{shown}<dl class='turns'>{turns}</dl></div></section>"
    )


def _turn(turn: Turn) -> str:
    pieces, learned = [], False
    for token in turn.tokens:
        if token.supervised != learned:
            pieces.append("<mark>" if token.supervised else "</mark>")
            learned = token.supervised
        pieces.append(_token(token))
    if learned:
        pieces.append("</mark>")
    label = "text" if turn.speaker == "other" else turn.speaker
    return f"<dt class='t-{turn.speaker}'>{label}</dt><dd>{''.join(pieces)}</dd>"


def _token(token: Token) -> str:
    text = escape(visible(token.text))
    if token.role == "image":
        text = f"▣ {text} × {token.count}"
    elif token.role == "padding":
        text = f" {text} × {token.count}"
    learned = "learned" if token.supervised else "not learned"
    return f"<span class='t-{token.role}' title='{token.role}, id {token.id}, {learned}'>{text}</span>"


def _figure(image: PIL.Image.Image) -> str:
    size = f"{image.width} × {image.height}"
    large = " class='large'" if image.width >= LARGE else ""
    shown = image
    if max(image.size) > LARGEST:
        shown = image.copy()
        shown.thumbnail((LARGEST, LARGEST))
    stream = io.BytesIO()
    shown.save(stream, "PNG")
    encoded = base64.b64encode(stream.getvalue()).decode("ascii")
    return (
        f"<figure><img{large} alt='what the model sees, {size} pixels' src='data:image/png;base64,{encoded}'>"
        f"<figcaption>{size}</figcaption></figure>"
    )
