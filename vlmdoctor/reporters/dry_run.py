"""The dry run for a terminal and for a page: the answer, the parts of the memory, and what it holds for."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vlmdoctor.reporters.dry_run_answer import Answer, answer_of, by_memory, speed
from vlmdoctor.reporters.memory_bar import bar_html, print_bar
from vlmdoctor.reporters.module_table import counted, print_tables, sized, tables_html

_STYLES = {"fits": "bold green", "too large": "bold red", "needs": "bold"}
MORE = "-v shows the modules, their shapes, how positions turn and what gets no gradient"


def print_dry_run(console: Console, facts: Mapping[str, Any], verbose: bool) -> None:
    """The answer, the memory as a bar, and what it holds for; with `verbose` the tables of modules too."""
    answer = answer_of(facts)
    for line in textwrap.wrap(answer.line, console.width, subsequent_indent="  ", break_on_hyphens=False):
        console.print(Text(line, _STYLES.get(answer.state, "bold yellow")), soft_wrap=True)
    if "cost" in facts:
        print_bar(console, facts["cost"])
    rows = list(cost_rows(facts))
    if verbose:
        rows += detail_rows(facts)
    elif "modules" in facts:
        rows.append(("more", MORE))
    lines = Table.grid(padding=(0, 2))
    lines.add_column(no_wrap=True, style="dim")
    lines.add_column()
    for name, value in rows:
        lines.add_row(name, Text(value))
    if rows:
        console.print(Padding(lines, (0, 0, 0, 2)))
    console.print()
    if verbose and "modules" in facts:
        print_tables(console, facts)


def dry_run_html(report_facts: Mapping[str, Any]) -> str:
    """The same as a fragment of HTML, with the tables; empty where there was no dry run."""
    facts = report_facts.get("dry_run")
    if facts is None:
        return ""
    answer = answer_of(facts)
    bar = bar_html(facts["cost"]) if "cost" in facts else ""
    rows = (*cost_rows(facts), *detail_rows(facts))
    costs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in rows)
    tables = tables_html(facts) if "modules" in facts else ""
    return (
        f"<div class='dry-run'>{_answer_html(answer)}{bar}"
        f"{f'<dl>{costs}</dl>' if costs else ''}{tables}</div>"
    )


def _answer_html(answer: Answer) -> str:
    return f"<p class='answer {answer.state.replace(' ', '-')}'>{escape(answer.line)}</p>"


def cost_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, text) of what the answer holds for, and of what else would fit."""
    if "not_possible" in facts:
        return
    cost = facts.get("cost")
    yield from _for_what(facts, cost)
    if facts.get("spread"):
        yield "assumed", "expert routing is not known: all experts are used equally often"
    if not facts.get("loss", True):
        yield "assumed", "no loss leads back to a parameter: what backward takes is not in the number"
    if cost is None:
        return
    if "ranks" in cost:
        yield "each rank", _rank_line(cost["ranks"])
    gpu = cost.get("gpu")
    if gpu is not None:
        yield from _gpu_rows(gpu, cost)


def _for_what(facts: Mapping[str, Any], cost: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    parts = []
    if facts["tokens"] is not None:
        images = f", {facts['image_tokens']} of them image tokens" if facts["image_tokens"] else ""
        parts.append(f"{facts['batch_size']} × {facts['tokens']} tokens{images}")
    if cost is not None:
        parts += [cost["precision"], cost["optimizer"]]
        parts += ["gradient checkpointing"] if cost["gradient_checkpointing"] else []
        parts += [f"LoRA of rank {cost['lora']}"] if cost["lora"] else []
        parts += [f"peak in the {cost['bytes']['peak_in']}"]
    if parts:
        yield "for", " · ".join(parts)
    frozen = cost["frozen"] if cost is not None else []
    if "frozen_by_contract" in facts:
        yield "frozen", f"{', '.join(facts['frozen_by_contract'])}: [tool.vlmdoctor.contract] says so"
    elif frozen:
        yield "frozen", ", ".join(frozen)


def detail_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(label, text) of what is shown with `-v` and on a page."""
    if "not_possible" in facts:
        return
    for rope in facts.get("rope", ()):
        yield "rope", rope_line(rope)
    for idle in facts.get("idle", ()):
        yield "no gradient", idle_line(idle)
    if facts["context"]:
        yield "context", f"{facts['context']} tokens"
    if facts["context"] and facts["image_tokens"] and facts["images"] and facts["batch_size"]:
        each = facts["image_tokens"] / max(1, facts["images"] // facts["batch_size"])
        yield "images", f"{each:.0f} tokens each: at most {int(facts['context'] // each)} in a context"
    if "images_are" in facts:
        yield "image size", facts["images_are"]
    cost = facts.get("cost")
    if cost is None:
        return
    parts = cost["bytes"]
    listed = (("weights", "parameters"), ("gradients", "gradients"), (cost["optimizer"], "optimizer"))
    over = ", ".join(
        f"{name} {sized(parts[part])}" for name, part in (*listed, ("activations", "activations"))
    )
    # Not all of it is alive at the same moment.
    yield "over the step", over
    yield "compute", f"{_flops(parts['flops'])} per step"
    if fitting := cost.get("fits_on"):
        yield "fits", ", ".join(by_memory(fitting))


def _rank_line(ranks: Mapping[str, Any]) -> str:
    if ranks["shard"] == "ddp":
        buckets = sized(ranks["buckets"])
        return f"one of {ranks['world_size']}, by DDP: buckets of {buckets} beside the gradients"
    return (
        f"one of {ranks['world_size']}, by FSDP2: {ranks['blocks']} layers gathered one by one, the largest "
        f"{sized(ranks['largest_block'])}; {sized(ranks['gathered'])} outside them stay gathered; "
        f"gradients reduced in {ranks['reduced_in']}"
    )


def _gpu_rows(gpu: Mapping[str, Any], cost: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if gpu.get("others"):
        yield "taken", _taken(gpu, cost)
    if gpu.get("uncertain"):
        yield (
            "uncertain",
            (
                f"the peak is estimated to within {cost['known_error']:.0%}; fragmentation and kernels' "
                "workspaces come on top"
            ),
        )
    if gpu["lacks_bfloat16"]:
        yield "note", f"the {gpu['name']} has no bfloat16 units: float16 runs many times faster there"
    settings = gpu.get("settings", ())
    for number, setting in enumerate(settings):
        label = "would fit" if number == 0 else ""
        unsure = ", uncertain" if setting.get("uncertain") else ""
        # Where parts are frozen already, it is those that learn which go on learning.
        less = setting["kind"] == "all parameters" and (cost["frozen"] or cost["lora"])
        kind = "with what learns now" if less else setting["kind"]
        yield label, f"{setting['options']}: {sized(setting['peak'])} ({kind}{unsure})"
    if not gpu["fits"] and not settings:
        yield "would fit", "no setting that was tried"
    largest = "; ".join(_largest(gpu))
    if largest:
        yield "limits", largest
    if gpu["fits"] and gpu["tokens_a_second"]:
        each = " on each rank, communication aside" if "ranks" in cost else ""
        of = f", {gpu['peak_rate']:g} TFLOP/s by the maker's data sheet" if gpu.get("peak_rate") else ""
        yield (
            "speed",
            f"{speed(gpu['tokens_a_second'])}{each}, assuming {cost['utilisation']:.0%} of its peak{of}",
        )


def _taken(gpu: Mapping[str, Any], cost: Mapping[str, Any]) -> str:
    others = list(gpu["others"])
    text = (
        f"'{gpu['asked']}' may be {' or '.join([gpu['name'], *others])}: that with the least memory was taken"
    )
    fitting = [name for name in others if name in cost["fits_on"] and name not in cost["uncertain_on"]]
    if not gpu["fits"] and fitting:
        text += f"; it fits {', '.join(fitting)}"
    return text


def _flops(count: float) -> str:
    """`25.3 TFLOPs`."""
    text = counted(count).replace("B", "G")
    return f"{text}FLOPs" if text[-1].isalpha() else f"{text} FLOPs"


def _largest(gpu: Mapping[str, Any]) -> Iterator[str]:
    """`max batch size 22`, and `max sequence length 2048`, as far as they were searched for."""
    for name, label in (("batch", "max batch size"), ("sequence", "max sequence length")):
        found = gpu.get(name)
        if found is None or not (found["size"] or gpu["fits"]):
            continue
        whole = " (the whole context)" if name == "sequence" and found["limit"] else ""
        how = "" if found["confirmed"] else ", estimated from smaller ones"
        yield f"{label} {found['size']}{whole}{how}"


def rope_line(rope: Mapping[str, Any]) -> str:
    """`text: rotary dim 128/128, theta 1e+06; mRoPE 16 + 24 + 24 = 64 pairs`."""
    of = f"/{rope['head_dim']}" if rope["head_dim"] else ""
    text = f"rotary dim {rope['rotated']}{of}"
    if rope["theta"] is not None:
        text += f", theta {rope['theta']:g}"
    if rope["kind"] not in ("default", "axial"):
        factor = dict(rope["settings"]).get("factor")
        text += f", {rope['kind']}{f' × {factor:g}' if isinstance(factor, int | float) else ''}"
    if rope["sections"]:
        total = sum(rope["sections"])
        half = rope["rotated"] // 2
        text += f"; mRoPE {' + '.join(map(str, rope['sections']))} = {total}"
        text += " pairs" if total == half else f", expected {half} pairs"
    layers = f", {rope['layers'].replace('_', ' ')}" if rope["layers"] else ""
    return f"{rope['part']}{layers}: {text}"


def idle_line(idle: Mapping[str, Any]) -> str:
    """`model.vision_tower.encoder.layers.23 (16 tensors): unused by design …`."""
    count = f" ({idle['tensors']} tensors)" if idle["tensors"] > 1 else ""
    return f"{idle['at']}{count}: {idle['why']}"
