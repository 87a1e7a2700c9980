"""Requirements of the user that the machine does not meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from vlmdoctor.evidence.demands import Demand, Demands
from vlmdoctor.evidence.environment import Environment, Gpu
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.versions import numbers
from vlmdoctor.knowledge.visible_devices import VARIABLE, read
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import GIB, HOST, laptop, workstation


@rule("demand-not-met", "ENV601")
def demand_not_met(environment: Environment, demands: Demands) -> Iterator[Finding]:
    """Requirements of `--require` not met by the machine.

    ## Why it matters
    A job script that begins with `vlmdoctor check-env --require 8-gpus,bf16,disk=200GB` ends at once, with
    one sentence, on a node that can't run it, and not after ten minutes of loading.

    ## Confidence and false positives
    Each requirement is compared with the measured value. What could not be measured is not met, with the
    reason. GPUs are counted if they are visible to torch (CUDA_VISIBLE_DEVICES); `vram` is that of the
    smallest, in GB of 10^9 bytes; `disk` that of the working folder.

    ## What to do
    Run on another machine, or lower the requirement; the finding says what was measured.
    """
    for demand in demands.demands:
        has, met = _held(demand, environment)
        if met:
            continue
        yield Finding(
            message=f"required {demand.text}, {f'found {has}' if met is False else f'not known: {has}'}",
            severity=Severity.ERROR,
            at=("--require",),
            measured={"there_is" if met is False else "not_known": has},
            threshold={"required": demand.text},
            cause="the machine does not meet it" if met is False else "it could not be measured",
            fix=Fix("run on another machine, or lower the requirement"),
        )


def seen_gpus(environment: Environment) -> tuple[Gpu, ...]:
    """The GPUs that are visible to a torch with support for them."""
    value = environment.variables.get(VARIABLE)
    if value is None:
        return tuple(gpu for gpu in environment.gpus if not gpu.lost)
    reading = read(value, len(environment.gpus), [gpu.uuid or "" for gpu in environment.gpus])
    if reading.crashes:
        return ()
    visible = range(len(environment.gpus)) if reading.visible is None else reading.visible
    return tuple(environment.gpus[i] for i in visible)


def _held(demand: Demand, environment: Environment) -> tuple[str, bool | None]:
    """(the measured value as text; whether it is enough, None where that is not known)."""
    gpus = seen_gpus(environment)
    kind = demand.kind
    if kind in ("gpu", "gpus", "cpu-only"):
        most = len(gpus)
        if (
            most
            and environment.torch is not None
            and not environment.torch.cuda
            and "torch" not in environment.unseen
        ):
            most, named = 0, "a GPU that the installed torch can't use"
        else:
            named = f"{most} GPU{'' if most == 1 else 's'}" if most else "no GPU"
        if kind == "cpu-only":
            return named, most == 0
        return named, most >= (demand.amount if kind == "gpus" else 1)
    if kind in ("bf16", "fp8", "vram", "nvlink"):
        return _of_gpus(demand, gpus)
    if kind in ("memory", "disk", "shm", "cpus"):
        return _of_host(demand, environment)
    return _of_versions(demand, environment)


def _of_gpus(demand: Demand, gpus: tuple[Gpu, ...]) -> tuple[str, bool | None]:
    if not gpus:
        return "no GPU", False
    if demand.kind == "vram":
        sizes = [gpu.memory for gpu in gpus]
        known = [size for size in sizes if size is not None]
        if len(known) < len(sizes):
            return "a GPU does not report its memory", None
        return f"{min(known) / 1e9:.1f} GB", min(known) >= demand.amount
    if demand.kind == "nvlink":
        links = [gpu.nvlinks for gpu in gpus]
        if any(link is None for link in links):
            return "a GPU does not report its links", None
        return f"{min(link or 0 for link in links)} links", all(links)
    least = (8, 0) if demand.kind == "bf16" else (8, 9)
    found = [gpu.capability for gpu in gpus]
    if any(capability is None for capability in found):
        return "a GPU does not report its compute capability", None
    lowest = min(capability for capability in found if capability is not None)
    return f"compute capability {'.'.join(map(str, lowest))}", lowest >= least


def _of_host(demand: Demand, environment: Environment) -> tuple[str, bool | None]:
    host = environment.host
    if host is None:
        return environment.unseen.get("host", "the machine was not measured"), None
    if demand.kind == "cpus":
        has = min(host.cpus, host.quota) if host.quota is not None else host.cpus
        return f"{has:g} CPUs", has >= demand.amount
    work = next((folder.free for folder in host.folders if folder.use == "work"), None)
    size = {"memory": host.available, "disk": work, "shm": host.shm}[demand.kind]
    if size is None:
        return f"{demand.kind} could not be measured", None
    return f"{size / 1e9:.1f} GB", size >= demand.amount


def _of_versions(demand: Demand, environment: Environment) -> tuple[str, bool | None]:
    kind = demand.kind
    field = {"cuda": "torch", "torch": "torch", "driver": "driver", "python": "python"}[kind]
    if field in environment.unseen:
        return environment.unseen[field], None
    has = {
        "cuda": environment.torch_cuda,
        "torch": environment.torch.version if environment.torch else None,
        "driver": environment.driver.version if environment.driver else None,
        "python": environment.python or None,
    }[kind]
    if has is None:
        return f"no {kind if kind != 'cuda' else 'torch for CUDA'}", False
    return f"{kind} {has}", numbers(has) >= numbers(demand.version)


@demand_not_met.bad
def more_gpus_than_there_are() -> tuple[Environment, Demands]:
    return workstation(), Demands(demands=(Demand(text="8-gpus", kind="gpus", amount=8),))


@demand_not_met.bad
def not_known() -> tuple[Environment, Demands]:
    hidden = workstation(host=None, unseen={"host": "nvidia-smi does not show it"})
    return hidden, Demands(demands=(Demand(text="disk=200GB", kind="disk", amount=200 * 10**9),))


@demand_not_met.good
def all_there() -> tuple[Environment, Demands]:
    demands = (
        Demand(text="gpu", kind="gpu"),
        Demand(text="bf16", kind="bf16"),
        Demand(text="vram=40GB", kind="vram", amount=40 * 10**9),
    )
    host = dataclasses.replace(HOST, available=100 * GIB)
    return workstation(host=host), Demands(
        demands=(*demands, Demand(text="memory=64GB", kind="memory", amount=64 * 10**9))
    )


@demand_not_met.good
def a_machine_without_gpus_is_wanted() -> tuple[Environment, Demands]:
    return laptop(), Demands(
        demands=(
            Demand(text="cpu-only", kind="cpu-only"),
            Demand(text="torch=2.6", kind="torch", version="2.6"),
        )
    )
