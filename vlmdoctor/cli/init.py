"""`vlmdoctor init TARGET`: writes down what the run is meant to be; `check` compares the run with it."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from typing import Annotated

import typer

from vlmdoctor.boundary import current_folder
from vlmdoctor.cli.completion import complete_targets
from vlmdoctor.settings_file import nearest

EXAMPLES = (
    ("vlmdoctor init train.py:build --dry-run", "See what would be written."),
    ("vlmdoctor init train.py:build", "Write it into pyproject.toml."),
)


def command(
    target: Annotated[
        str,
        typer.Argument(
            help="minivlm[:preset], a folder with config.json, package.module:factory or "
            "path/to/file.py:factory.",
            metavar="TARGET",
            autocompletion=complete_targets,
        ),
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace the contract that is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the lines and write nothing.")] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Let the checkpoint's own code run.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print tracebacks.")] = False,
) -> None:
    """Write a run's contract into pyproject.toml: what learns, how fast, on what."""
    path = nearest(current_folder())  # before torch is imported, which a folder that was deleted can end

    from vlmdoctor.contract import written
    from vlmdoctor.engine import Gatherer
    from vlmdoctor.evidence.contract_status import ContractStatus
    from vlmdoctor.knowledge.named_parts import naming
    from vlmdoctor.output_file import write_whole
    from vlmdoctor.probes.model.contract import inferred
    from vlmdoctor.probes.model.named import known_parts
    from vlmdoctor.settings_file import content, with_contract
    from vlmdoctor.targets.resolve import resolve

    text = content(path)
    if not dry_run:
        with_contract(text, "", path, force=force)  # a refusal comes before the model is built
    with redirect_stdout(sys.stderr):
        subject = resolve(target, trust_remote_code=trust_remote_code, makes_batch=False).subject
        with naming(known_parts(subject)):  # the parts are those that `check` sees
            lines = written(inferred(Gatherer(subject, depth="static")(ContractStatus)))
    if dry_run:
        print(f"[tool.vlmdoctor.contract]\n{lines}", end="")
        return
    write_whole(path, with_contract(text, lines, path, force=force))
    print(f"[tool.vlmdoctor.contract]\n{lines}", end="")
    print(
        f"written to {path}: correct what is not meant; 'vlmdoctor check' compares runs with it",
        file=sys.stderr,
    )
