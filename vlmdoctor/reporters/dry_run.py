"""The dry run's table of modules and its costs, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmdoctor.reporters.module_table import STYLE, counted, print_tables, sized, tables_html


def print_dry_run(console: Console, told: Mapping[str, Any]) -> None:
    """The table of modules and what the step costs."""
    if "not_possible" in told:
        console.print(Text(f"no dry run: {told['not_possible']}"))
        console.print()
        return
    print_tables(console, told)
    lines = Table.grid(padding=(0, 2))
    for name, value in cost_rows(told):
        lines.add_row(Text(name, style="dim"), Text(value))
    console.print(lines)
    console.print()


def dry_run_html(facts: Mapping[str, Any]) -> str:
    """The same as a fragment of HTML; empty where there was no dry run."""
    told = facts.get("dry_run")
    if told is None:
        return ""
    if "not_possible" in told:
        return f"<p>no dry run: {escape(told['not_possible'])}</p>"
    costs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in cost_rows(told))
    return f"<style>{STYLE}</style>{tables_html(told)}<dl>{costs}</dl>"


def cost_rows(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Labelled lines: the batch, the bytes, the GPU."""
    for rope in told.get("rope", ()):
        yield "rope", rope_line(rope)
    for idle in told.get("idle", ()):
        yield "no gradient", idle_line(idle)
    if "frozen_by_contract" in told:
        yield "frozen", f"{', '.join(told['frozen_by_contract'])}: [tool.vlmdoctor.contract] says so"
    tokens = told["tokens"]
    if tokens is not None:
        images = f", {told['image_tokens']} of them of images" if told["image_tokens"] else ""
        room = f"; the context holds {told['context']}" if told["context"] else ""
        yield "batch", f"{told['batch_size']} × {tokens} tokens{images}{room}"
    if told["context"] and told["image_tokens"] and told["images"] and told["batch_size"]:
        each = told["image_tokens"] / max(1, told["images"] // told["batch_size"])
        yield "images", f"{each:.0f} tokens each: at most {int(told['context'] // each)} in a context"
    if told.get("spread"):
        yield "assumed", "which experts tokens choose is not known: all are taken as often"
    if "images_are" in told:
        yield "", told["images_are"]
    cost = told.get("cost")
    if cost is None:
        if "cost_not_possible" in told:
            yield "cost", f"not known: {told['cost_not_possible']}"
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
    yield "work", f"{counted(parts['flops'])} floating-point operations a step"
    gpu = cost.get("gpu")
    if gpu is None:
        fitting = cost.get("fits_on", [])
        one = "each on" if "ranks" in cost else "on one"
        yield "fits", f"{one} {', '.join(fitting)}" if fitting else "on no GPU that is known here"
        return
    yield from _gpu_rows(gpu, cost["utilisation"])


def _rank_line(ranks: Mapping[str, Any]) -> str:
    if ranks["shard"] == "ddp":
        buckets = sized(ranks["buckets"])
        return f"one of {ranks['world_size']}, by DDP: buckets of {buckets} beside the gradients"
    return (
        f"one of {ranks['world_size']}, by FSDP2: {ranks['blocks']} layers gathered one by one, the largest "
        f"{sized(ranks['largest_block'])}; {sized(ranks['gathered'])} outside them stay gathered; "
        f"gradients reduced in {ranks['reduced_in']}"
    )


def _gpu_rows(gpu: Mapping[str, Any], utilisation: float) -> Iterator[tuple[str, str]]:
    fits = "fits" if gpu["fits"] else "does not fit"
    yield gpu["name"], f"{fits} in {sized(gpu['memory'])}, of which 1.1 GB are left to CUDA"
    if gpu["lacks_bfloat16"]:
        yield "", f"the {gpu['name']} has no bfloat16 units: float16 runs many times faster there"
    settings = gpu.get("settings", ())
    for setting in settings:
        yield "would fit", f"{setting['options']}: {sized(setting['peak'])} ({setting['kind']})"
    if not gpu["fits"] and not settings:
        yield "would fit", "no setting that was tried"
    for name, unit in (("batch", "a batch of {}"), ("sequence", "samples of {} tokens")):
        found = gpu.get(name)
        if found is None:
            continue
        what = unit.format(found["size"]) if found["size"] else f"no {name}"
        how = "" if found["confirmed"] else ", reckoned from smaller ones"
        whole = ", the whole context" if name == "sequence" and found["limit"] else ""
        if found["size"] or gpu["fits"]:
            yield "at most", f"{what}{whole}{how}"
    if gpu["fits"] and gpu["tokens_a_second"]:
        yield (
            "speed",
            f"about {gpu['tokens_a_second']:,.0f} tokens a second at {utilisation:.0%} of the peak rate",
        )


def rope_line(rope: Mapping[str, Any]) -> str:
    """`text: 128 of 128 numbers in a head turn, theta 1e+06; mRoPE 16 + 24 + 24 = 64 pairs`."""
    of = f" of {rope['head_dim']}" if rope["head_dim"] else ""
    text = f"{rope['rotated']}{of} numbers in a head turn"
    if rope["theta"] is not None:
        text += f", theta {rope['theta']:g}"
    if rope["kind"] not in ("default", "axial"):
        factor = dict(rope["settings"]).get("factor")
        text += f", {rope['kind']}{f' × {factor:g}' if isinstance(factor, int | float) else ''}"
    if rope["sections"]:
        total = sum(rope["sections"])
        half = rope["rotated"] // 2
        text += f"; mRoPE {' + '.join(map(str, rope['sections']))} = {total}"
        text += " pairs" if total == half else f", where {half} pairs turn"
    layers = f", {rope['layers'].replace('_', ' ')}" if rope["layers"] else ""
    return f"{rope['part']}{layers}: {text}"


def idle_line(idle: Mapping[str, Any]) -> str:
    """`model.vision_tower.encoder.layers.23 (16 tensors): unused by design …`."""
    count = f" ({idle['tensors']} tensors)" if idle["tensors"] > 1 else ""
    return f"{idle['at']}{count}: {idle['why']}"
