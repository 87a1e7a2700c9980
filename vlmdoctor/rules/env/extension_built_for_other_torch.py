"""A compiled extension that was built for another torch."""

from __future__ import annotations

from collections.abc import Iterator

from vlmdoctor.evidence.environment import Environment, Extension, Torch
from vlmdoctor.finding import Finding, Fix, Severity
from vlmdoctor.rulebook import rule
from vlmdoctor.rules.env._healthy import WHEEL, workstation

_ASKS = {
    "flash-attn": "pip install --force-reinstall --no-build-isolation --no-cache-dir --no-deps flash-attn",
    "xformers": "pip install --upgrade xformers",
    "bitsandbytes": "pip install --upgrade bitsandbytes",
}


@rule("extension-built-for-other-torch", "ENV303")
def extension_built_for_other_torch(environment: Environment) -> Iterator[Finding]:
    """flash-attn, xformers or bitsandbytes built for another torch or CUDA.

    ## Why it matters
    Importing it raises "undefined symbol: _ZN3c10…" (https://github.com/Dao-AILab/flash-attention/issues/931,
    https://github.com/Dao-AILab/flash-attention/issues/1832), or it warns that its CUDA code can't be loaded
    and works without it (https://github.com/facebookresearch/xformers/issues/982,
    https://github.com/bitsandbytes-foundation/bitsandbytes/issues/1056).

    ## Confidence and false positives
    What an extension was built for is read from its own file names and metadata, and the symbols that it
    needs are looked up in the installed torch. A missing symbol is an error, since the import will fail. If
    only the recorded version differs, it is a warning.

    ## What to do
    Reinstall the extension, so that it is built or selected for the installed torch.
    """
    environment.need("extensions", "torch")
    torch = environment.torch
    if torch is None:
        return
    for extension in environment.extensions:
        what = _misfit(extension, torch)
        if what is None:
            continue
        built = " and ".join(
            part
            for part in (
                extension.torch and f"torch {extension.torch}",
                extension.cuda and f"CUDA {extension.cuda}",
            )
            if part
        )
        yield Finding(
            message=f"{extension.package} {extension.version} {what}",
            severity=Severity.ERROR if extension.missing else Severity.WARNING,
            at=(extension.package, "torch"),
            measured={"built_for": built or "not known", "missing_symbols": list(extension.missing)},
            threshold={"torch": torch.version},
            cause="it was compiled for another torch than the installed one",
            fix=Fix(
                "reinstall the extension for this torch",
                (_ASKS.get(extension.package, f"pip install --upgrade {extension.package}"),),
            ),
        )


def _misfit(extension: Extension, torch: Torch) -> str | None:
    """What is wrong between an extension and the installed torch; None where nothing is."""
    if extension.missing:
        return f"needs symbols that torch {torch.version} does not have: importing it fails"
    if extension.torch and not _same_release(extension.torch, torch.release):
        return f"was built for torch {extension.torch}, and {torch.version} is installed"
    if (
        extension.package == "xformers"
        and extension.cuda
        and torch.cuda
        and not _same_major(extension.cuda, torch.cuda)
    ):
        return f"was built for CUDA {extension.cuda}, and torch for {torch.cuda}"
    if extension.cuda_files is not None and torch.cuda:
        digits = torch.cuda.replace(".", "")
        if not any(name.startswith(digits) for name in extension.cuda_files):
            return f"has no library for CUDA {torch.cuda}: it works without the GPU, or not at all"
    return None


def _same_release(built: str, installed: str) -> bool:
    return built.split("+")[0].split(".")[:2] == installed.split(".")[:2]


def _same_major(one: str, other: str) -> bool:
    return one.split(".")[0] == other.split(".")[0]


@extension_built_for_other_torch.bad
def flash_attention_after_an_update() -> Environment:
    built = Extension(
        package="flash-attn", version="2.7.4.post1", missing=("_ZN3c105ErrorC2ENS_14SourceLocationE",)
    )
    return workstation(extensions=(built,))


@extension_built_for_other_torch.bad
def xformers_of_last_month() -> Environment:
    return workstation(
        extensions=(Extension(package="xformers", version="0.0.34", torch="2.10.0+cu128", cuda="12.8"),)
    )


@extension_built_for_other_torch.good
def built_for_it() -> Environment:
    built = Extension(package="xformers", version="0.0.37", torch="2.13.0+cu130", cuda="13.0")
    return workstation(
        torch=WHEEL,
        extensions=(built, Extension(package="bitsandbytes", version="0.50.0", cuda_files=("126", "130"))),
    )
