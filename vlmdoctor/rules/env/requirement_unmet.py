"""A package that needs another version of another package."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator, Mapping

from vlmdoctor.evidence.environment import Environment
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.knowledge.versions import numbers
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import workstation

_COMPILED = ("torchvision", "torchaudio")
# Most requirements compare releases only; for them `packaging` need not be imported. What follows a
# semicolon says when the requirement applies: one that is met need not be evaluated.
_CLAUSE = re.compile(r"(>=|<|==|!=)\s*(\d+(?:\.\d+){0,5})(?![.\w*])")
_PLAIN = re.compile(
    rf"(?P<name>[A-Za-z0-9_.-]+)\s*(?P<clauses>(?:{_CLAUSE.pattern}\s*,?\s*)*)(?:;.*)?", re.DOTALL
)
_RELEASE = re.compile(r"(\d+(?:\.\d+){0,5})(?:\+\w+)?")
_HOLDS = {">=": operator.ge, "<": operator.lt, "==": operator.eq, "!=": operator.ne}


@rule("requirement-unmet", "ENV302")
def requirement_unmet(environment: Environment) -> Iterator[Finding]:
    """Dependency version conflict: an installed package needs another version of a package.

    ## Why it matters
    A later install replaced torch, or kept an old package: "operator torchvision::nms does not exist"
    (https://github.com/pytorch/pytorch/issues/122494,
    https://github.com/AUTOMATIC1111/stable-diffusion-webui/issues/10331), "cannot import name
    'EncoderDecoderCache'" (https://github.com/huggingface/peft/issues/2292,
    https://github.com/haotian-liu/LLaVA/issues/1808).

    ## Confidence and false positives
    Each package's own metadata are compared with the installed versions, so no table can go out of date; peft
    needs one line, since its metadata do not say it. It is an error for torchvision and torchaudio, whose
    compiled code breaks; a warning for others, which may work all the same. The builds of the pair (`+cu128`,
    `+cpu`) have to agree too.

    ## What to do
    Install the pair together, so that pip resolves it.
    """
    environment.need("packages")
    packages = environment.packages
    reported = set()
    for package, needs in environment.requires.items():
        for need in needs:
            other, wanted = _unmet(need, packages)
            if other is None or package not in packages:
                continue
            reported.add((package, other))
            yield _finding(environment, package, other, wanted, package in _COMPILED)
    for package in _COMPILED:
        ours, torchs = _build(packages.get(package)), _build(packages.get("torch"))
        if ours and torchs and ours != torchs and (package, "torch") not in reported:
            yield _finding(environment, package, "torch", f"the build +{ours}", True)
    peft, transformers = numbers(packages.get("peft", "")), numbers(packages.get("transformers", ""))
    if (
        peft >= (0, 12)
        and transformers
        and transformers < (4, 43)
        and ("peft", "transformers") not in reported
    ):
        yield _finding(environment, "peft", "transformers", ">=4.43", True)


def _unmet(need: str, packages: Mapping[str, str]) -> tuple[str | None, str]:
    """(package, wanted versions) of a requirement that is not met; (None, "") of one that is."""
    if _surely_met(need, packages):
        return None, ""
    # Its import takes longer than all rules.
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.version import InvalidVersion, Version

    try:
        requirement = Requirement(need)
        name = requirement.name.lower().replace("_", "-").replace(".", "-")
        if name not in packages or (requirement.marker and not requirement.marker.evaluate()):
            return None, ""
        if requirement.specifier.contains(Version(packages[name]), prereleases=True):
            return None, ""
    except (InvalidRequirement, InvalidVersion, LookupError, ValueError):
        return None, ""
    return name, str(requirement.specifier)


def _surely_met(need: str, packages: Mapping[str, str]) -> bool:
    """Whether plain releases are compared and match; anything else is not judged."""
    parts = _PLAIN.fullmatch(need)
    if parts is None:
        return False
    installed = packages.get(re.sub(r"[-_.]+", "-", parts["name"]).lower())
    if installed is None:
        return True
    release = _RELEASE.fullmatch(installed)
    return release is not None and all(
        _HOLDS[sign](_padded(release[1]), _padded(wanted))
        for sign, wanted in _CLAUSE.findall(parts["clauses"])
    )


def _padded(version: str) -> tuple[int, ...]:
    return (*numbers(version), 0, 0, 0, 0, 0, 0)[:6]


def _build(version: str | None) -> str | None:
    build = (version or "").partition("+")[2]
    return build if build == "cpu" or build.startswith(("cu", "rocm")) else None


def _finding(environment: Environment, package: str, other: str, wanted: str, breaks: bool) -> Finding:
    packages = environment.packages
    return Finding(
        message=f"{package} {packages[package]} needs {other} {wanted}, and {packages[other]} is installed",
        severity=Severity.ERROR if breaks else Severity.WARNING,
        at=(package, other),
        measured={other: packages[other]},
        threshold={other: wanted},
        cause="one of the two was installed without the other",
        fix=Fix("install the two together", (f"pip install --upgrade {other} {package}",)),
    )


@requirement_unmet.bad
def torch_was_replaced() -> Environment:
    packages = {"torch": "2.13.0+cu130", "torchvision": "0.27.1"}
    return workstation(packages=packages, requires={"torchvision": ("torch==2.12.1",)})


@requirement_unmet.bad
def builds_differ() -> Environment:
    return workstation(packages={"torch": "2.13.0+cu130", "torchvision": "0.28.0+cpu"})


@requirement_unmet.good
def a_pair() -> Environment:
    packages = {"torch": "2.13.0+cu130", "torchvision": "0.28.0+cu130"}
    return workstation(packages=packages, requires={"torchvision": ("torch==2.13.0", 'numpy; extra == "x"')})
