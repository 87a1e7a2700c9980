"""contract-broken: the run differs from its contract."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.contract import ROLE_KEYS, deviates, rate_of, state_of
from vlmdoctor.evidence.contract_status import ContractStatus
from vlmdoctor.evidence.parameters import Parameter, Parameters
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules._healthy import frozen, sample_parameters
from vlmdoctor.rules.places import places

_WORDS = {
    "vision": "the vision encoder",
    "projector": "the projector",
    "language": "the language model",
    "head": "the head",
    "new-token-rows": "the rows of new tokens",
    "supervise": "what is supervised",
    "image-tokens": "the number of image tokens",
    "precision": "the precision",
    "steps": "the number of steps",
}


@rule("contract-broken", "CFG110", explains=("frozen-by-mistake", "trained-by-mistake"))
def contract_broken(agreement: ContractStatus, parameters: Parameters) -> Iterator[Finding]:
    """Run differs from its contract in pyproject.toml.

    ## Why it matters
    A frozen projector may be a plan or an accident, and no measurement can tell them apart: people find out
    after days that a part did not learn ([LLaVA 1173](https://github.com/haotian-liu/LLaVA/issues/1173)) or
    that it did and should not have ([lerobot 4019](https://github.com/huggingface/lerobot/issues/4019)).
    A contract of a few lines, written once by `vlmdoctor init TARGET` and corrected by hand, settles it.

    ## Confidence and false positives
    Both sides are known: the contract, and what was read from the model, the optimizer, the batch and the
    training arguments. A term that can't be determined from these is not judged. Learning rates are those
    before any schedule, and may differ by 1%.

    ## What to do
    Change the run, or the contract if the plan has changed (`vlmdoctor init TARGET --force` writes a new
    one).
    """
    for key, expected in agreement.expected.items():
        seen = agreement.seen.get(key)
        if seen is None or not deviates(key, expected, seen):
            continue
        chosen, ways = _mistaken(key, expected, seen, parameters)
        yield Finding(
            f"{_WORDS[key]}: the contract says '{expected}', the run has '{seen}'",
            Severity.ERROR,
            at=places([p.name for p in chosen], [p.name for p in parameters.parameters]) or (key,),
            measured={key: seen},
            threshold={key: expected},
            cause=f"[tool.vlmdoctor.contract] says {key} = '{expected}'",
            fix=ways,
            links=("https://github.com/haotian-liu/LLaVA/issues/1173",) if key in ROLE_KEYS else (),
            # Only what is frozen against the contract can be tried out.
            parameters=tuple(p.name for p in chosen if not p.requires_grad),
        )


def _mistaken(key: str, expected: str, seen: str, parameters: Parameters) -> tuple[list[Parameter], Fix]:
    """The parameters that differ from the contract, and what to do about it."""
    if key not in ROLE_KEYS:
        return [], Fix("change the run, or the contract")
    part = list(parameters.role(key))
    learning = [p for p in part if p.requires_grad]
    stuck = [p for p in part if not p.requires_grad]
    meant, found = state_of(expected), state_of(seen)
    if meant == found:
        return learning, Fix(f"give its parameter group lr={rate_of(expected):g}, or change the contract")
    if meant == "train":
        return stuck, Fix("set requires_grad before the optimizer is made, or change the contract")
    if meant == "frozen":
        return learning, Fix("freeze them (requires_grad_(False)), or change the contract")
    if meant == "lora":
        base = [p for p in learning if "lora_" not in p.name]
        return base or part, Fix("attach adapters and freeze the rest, or change the contract")
    return part, Fix("freeze what should not learn, or change the contract")


@contract_broken.bad
def projector_frozen_against_the_contract() -> tuple[Parameters, ContractStatus]:
    return (
        sample_parameters(frozen("vision", "projector")),
        ContractStatus(
            expected={"vision": "frozen", "projector": "train"},
            seen={"vision": "frozen", "projector": "frozen"},
        ),
    )


@contract_broken.bad
def another_learning_rate() -> tuple[Parameters, ContractStatus]:
    return (
        sample_parameters(),
        ContractStatus(expected={"projector": "train, lr 0.001"}, seen={"projector": "train, lr 2e-05"}),
    )


@contract_broken.good
def as_agreed() -> tuple[Parameters, ContractStatus]:
    terms = {"vision": "frozen", "projector": "train, lr 0.001", "image-tokens": "64 per image"}
    return sample_parameters(frozen("vision")), ContractStatus(
        expected={**terms, "steps": "40000"}, seen=terms
    )


@contract_broken.good
def no_contract() -> tuple[Parameters, ContractStatus]:
    return sample_parameters(frozen("vision")), ContractStatus(expected={}, seen={"vision": "frozen"})
