"""rope-theta-differs: the rotary table was made from another base than the configuration's."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.buffers import Buffers, Table
from vlmdoctor.finding import Certainty, Finding, Fix, Severity
from vlmdoctor.rulebook import rule


@rule("rope-theta-differs", "ROPE204", explains=("uninitialised-buffer",))
def rope_theta_differs(buffers: Buffers) -> Iterator[Finding]:
    """RoPE theta of the table differs from the configuration's.

    ## Why it matters
    Since transformers 5 the base is in `config.rope_parameters`, so `getattr(config, "rope_theta", 10000)`
    finds nothing and takes the default: weights that were trained with 1000000 run with 10000, short texts
    look right and long ones don't, and nothing raises ([DeepSpeed
    8345](https://github.com/deepspeedai/DeepSpeed/issues/8345), [slime
    1720](https://github.com/THUDM/slime/issues/1720), [SpecForge
    265](https://github.com/sgl-project/SpecForge/issues/265)).

    ## Confidence and false positives
    The base is computed from the table's own numbers, and a table is judged only if that base reproduces it.
    It is compared only where the configuration gives exactly one base and no scaling; the tolerance is a
    tenth. Tables in vision towers are not judged: they have a base of their own.

    ## What to do
    Read the base where it is now:

        theta = config.rope_parameters["rope_theta"]
    """
    wrong = [table for table in buffers.tables if _differs(table)]
    if not wrong:
        return
    first = wrong[0]
    yield Finding(
        message=f"the RoPE table has theta {first.theta:g}, expected {first.config_theta:g} from the "
        "configuration",
        severity=Severity.ERROR,
        at=tuple(table.name for table in wrong[:8]),
        measured={"theta": first.theta},
        threshold={"theta": first.config_theta},
        cause="the base was not read from config.rope_parameters, or was written down by hand (inferred)",
        certainty=Certainty.INFERRED,
        fix=Fix("read the base from the configuration", ('theta = config.rope_parameters["rope_theta"]',)),
    )


def _differs(table: Table) -> bool:
    if table.theta is None or table.config_theta is None or table.problem is not None:
        return False
    return abs(table.theta / table.config_theta - 1.0) > 0.1


@rope_theta_differs.bad
def default_base() -> Buffers:
    return Buffers(
        tables=(Table(name="lm.cos", owner="Rotary", dtype="float32", theta=1e4, config_theta=1e6),)
    )


@rope_theta_differs.good
def same_base() -> Buffers:
    return Buffers(
        tables=(Table(name="lm.cos", owner="Rotary", dtype="float32", theta=1.01e6, config_theta=1e6),)
    )
