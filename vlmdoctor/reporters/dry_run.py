"""The dry run's table of modules and its costs, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmdoctor.knowledge.gpus import CUDA_RESERVED
from vlmdoctor.reporters.module_table import STYLE, counted, print_tables, sized, tables_html


def print_dry_run(console: Console, facts: Mapping[str, Any]) -> None:
    """The table of modules and what the step costs."""
    if "not_possible" in facts:
        console.print(Text(f"no dry run: {facts['not_possible']}"))
        console.print()
        return
    print_tables(console, facts)
    lines = Table.grid(padding=(0, 2))
    for name, value in cost_rows(facts):
        lines.add_row(Text(name, style="dim"), Text(value))
    console.print(lines)
    console.print()


def dry_run_html(report_facts: Mapping[str, Any]) -> str:
    """The same as a fragment of HTML; empty where there was no dry run."""
    facts = report_facts.get("dry_run")
    if facts is None:
        return ""
    if "not_possible" in facts:
        return f"<p>no dry run: {escape(facts['not_possible'])}</p>"
    costs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in cost_rows(facts))
    return f"<style>{STYLE}</style>{tables_html(facts)}<dl>{costs}</dl>"


def cost_rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Labelled lines: the batch, the bytes, the GPU."""
    for rope in facts.get("rope", ()):
        yield "rope", rope_line(rope)
    for idle in facts.get("idle", ()):
        yield "no gradient", idle_line(idle)
    if "frozen_by_contract" in facts:
        yield "frozen", f"{', '.join(facts['frozen_by_contract'])}: [tool.vlmdoctor.contract] says so"
    tokens = facts["tokens"]
    if tokens is not None:
        images = f", {facts['image_tokens']} of them image tokens" if facts["image_tokens"] else ""
        room = f"; the context holds {facts['context']}" if facts["context"] else ""
        yield "batch", f"{facts['batch_size']} × {tokens} tokens{images}{room}"
    if facts["context"] and facts["image_tokens"] and facts["images"] and facts["batch_size"]:
        each = facts["image_tokens"] / max(1, facts["images"] // facts["batch_size"])
        yield "images", f"{each:.0f} tokens each: at most {int(facts['context'] // each)} in a context"
    if facts.get("spread"):
        yield "assumed", "expert routing is not known: all experts are used equally often"
    if "images_are" in facts:
        yield "", facts["images_are"]
    cost = facts.get("cost")
    if cost is None:
        if "cost_not_possible" in facts:
            yield "cost", f"not known: {facts['cost_not_possible']}"
        return
    parts = cost["bytes"]
    held = (("weights", "parameters"), ("gradients", "gradients"), (cost["optimizer"], "optimizer"))
    listed = ", ".join(
        f"{name} {sized(parts[part])}" for name, part in (*held, ("activations", "activations"))
    )
    yield (
        "memory",
        f"{sized(parts['peak'])} at the peak, in the {parts['peak_in']}: {listed} ({cost['precision']})",
    )
    if "ranks" in cost:
        yield "each rank", _rank_line(cost["ranks"])
    yield "compute", f"{_flops(parts['flops'])} per step"
    gpu = cost.get("gpu")
    if gpu is None:
        fitting = cost.get("fits_on", [])
        one = "each on" if "ranks" in cost else "on one"
        yield "fits", f"{one} {', '.join(fitting)}" if fitting else "on no known GPU"
        return
    yield from _gpu_rows(gpu, parts["peak"], cost["utilisation"])


def _rank_line(ranks: Mapping[str, Any]) -> str:
    if ranks["shard"] == "ddp":
        buckets = sized(ranks["buckets"])
        return f"one of {ranks['world_size']}, by DDP: buckets of {buckets} beside the gradients"
    return (
        f"one of {ranks['world_size']}, by FSDP2: {ranks['blocks']} layers gathered one by one, the largest "
        f"{sized(ranks['largest_block'])}; {sized(ranks['gathered'])} outside them stay gathered; "
        f"gradients reduced in {ranks['reduced_in']}"
    )


def _gpu_rows(gpu: Mapping[str, Any], peak: int, utilisation: float) -> Iterator[tuple[str, str]]:
    fits = "fits" if gpu["fits"] else "does not fit"
    usable = gpu["memory"] - CUDA_RESERVED
    needed = f"{peak / 1e9:.1f}" if peak >= 1e8 else sized(peak)
    yield gpu["name"], f"{fits}: {needed} of {sized(usable)} ({sized(CUDA_RESERVED)} reserved for CUDA)"
    if gpu["lacks_bfloat16"]:
        yield "", f"the {gpu['name']} has no bfloat16 units: float16 runs many times faster there"
    settings = gpu.get("settings", ())
    for setting in settings:
        yield "would fit", f"{setting['options']}: {sized(setting['peak'])} ({setting['kind']})"
    if not gpu["fits"] and not settings:
        yield "would fit", "no setting that was tried"
    largest = "; ".join(_largest(gpu))
    if largest:
        yield "limits", largest
    if gpu["fits"] and gpu["tokens_a_second"]:
        yield (
            "speed",
            f"about {gpu['tokens_a_second']:,.0f} tokens/s at {utilisation:.0%} of the peak rate",
        )


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
