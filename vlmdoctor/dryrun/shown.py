"""The dry run's table of modules and its costs, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

DEPTH = 3  # dotted parts, numbers aside: deeper modules are in the JSON
STYLE = """
.vlmdoctor table{border-collapse:collapse;font-variant-numeric:tabular-nums}
.vlmdoctor td,.vlmdoctor th{padding:.1rem .6rem;text-align:right}
.vlmdoctor td:first-child,.vlmdoctor th:first-child{text-align:left}
"""
HEADINGS = ("module", "parameters", "in", "out", "kept", "FLOPs", "learns")


def print_dry_run(console: Console, told: Mapping[str, Any]) -> None:
    """The table of modules and what the step costs."""
    if "not_possible" in told:
        console.print(Text(f"no dry run: {told['not_possible']}"))
        console.print()
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in HEADINGS:
        left = heading == "module"
        table.add_column(heading, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    for row in module_rows(told["modules"]):
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    console.print()
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
    head = "".join(f"<th>{heading}</th>" for heading in HEADINGS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in module_rows(told["modules"])
    )
    costs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in cost_rows(told))
    return f"<style>{STYLE}</style><table><tr>{head}</tr>{body}</table><dl>{costs}</dl>"


def module_rows(modules: Any) -> Iterator[tuple[str, ...]]:
    """The cells of the modules that are worth a line: with parameters, and not too deep."""
    for module in modules:
        depth = sum(part != "*" for part in module["name"].split("."))
        if depth > DEPTH or not module["parameters"] or module["kind"] == "ModuleList":
            continue
        count = f"  × {module['count']}" if module["count"] > 1 else ""
        trainable, gradient = module["trainable"], module["gradient"]
        learns = "frozen" if not trainable else {True: "yes", False: "not all", None: ""}[gradient]
        yield (
            module["name"] + count,
            _count(module["parameters"]),
            _shape(module["shape_in"]),
            _shape(module["shape_out"]),
            _bytes(module["kept"]) if module["shape_out"] else "",
            _count(module["flops"]) if module["flops"] else "",
            learns,
        )


def cost_rows(told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Labelled lines: the batch, the bytes, the GPU."""
    tokens = told["tokens"]
    if tokens is not None:
        images = f", {told['image_tokens']} of them of images" if told["image_tokens"] else ""
        room = f"; the context holds {told['context']}" if told["context"] else ""
        yield "batch", f"{told['batch_size']} × {tokens} tokens{images}{room}"
    if told["context"] and told["image_tokens"] and told["images"] and told["batch_size"]:
        each = told["image_tokens"] / max(1, told["images"] // told["batch_size"])
        yield "images", f"{each:.0f} tokens each: at most {int(told['context'] // each)} in a context"
    cost = told.get("cost")
    if cost is None:
        if "cost_not_possible" in told:
            yield "cost", f"not known: {told['cost_not_possible']}"
        return
    parts = cost["bytes"]
    held = (("weights", "parameters"), ("gradients", "gradients"), (cost["optimizer"], "optimizer"))
    listed = ", ".join(
        f"{name} {_bytes(parts[part])}" for name, part in (*held, ("activations", "activations"))
    )
    yield (
        "memory",
        f"{_bytes(parts['peak'])} at the peak, in the {parts['peak_in']}: {listed} ({cost['precision']})",
    )
    if "ranks" in cost:
        yield "each rank", _rank_line(cost["ranks"])
    yield "work", f"{_count(parts['flops'])} floating-point operations a step"
    gpu = cost.get("gpu")
    if gpu is None:
        fitting = cost.get("fits_on", [])
        one = "each on" if "ranks" in cost else "on one"
        yield "fits", f"{one} {', '.join(fitting)}" if fitting else "on no GPU that is known here"
        return
    yield from _gpu_rows(gpu, cost["utilisation"])


def _rank_line(ranks: Mapping[str, Any]) -> str:
    if ranks["shard"] == "ddp":
        buckets = _bytes(ranks["buckets"])
        return f"one of {ranks['world_size']}, by DDP: buckets of {buckets} beside the gradients"
    return (
        f"one of {ranks['world_size']}, by FSDP2: {ranks['blocks']} layers gathered one by one, the largest "
        f"{_bytes(ranks['largest_block'])}; {_bytes(ranks['gathered'])} outside them stay gathered; "
        f"gradients reduced in {ranks['reduced_in']}"
    )


def _gpu_rows(gpu: Mapping[str, Any], utilisation: float) -> Iterator[tuple[str, str]]:
    fits = "fits" if gpu["fits"] else "does not fit"
    yield gpu["name"], f"{fits} in {_bytes(gpu['memory'])}, of which 1.1 GB are left to CUDA"
    if gpu["lacks_bfloat16"]:
        yield "", f"the {gpu['name']} has no bfloat16 units: float16 runs many times faster there"
    settings = gpu.get("settings", ())
    for setting in settings:
        yield "would fit", f"{setting['options']}: {_bytes(setting['peak'])} ({setting['kind']})"
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


def _shape(shape: Any) -> str:
    return "×".join(str(size) for size in shape) if shape else ""


def _bytes(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _count(count: int) -> str:
    for unit, size in (("P", 1e15), ("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return str(count)
