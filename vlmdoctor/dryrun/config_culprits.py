"""What `check` does where the model of a config.json fails: it tries changed ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmdoctor.boundary import read_json
from vlmdoctor.dryrun.config_search import contradictions
from vlmdoctor.dryrun.plan import Plan, shapes_under
from vlmdoctor.engine import Gatherer
from vlmdoctor.errors import Unavailable
from vlmdoctor.evidence.contradictions import Contradictions
from vlmdoctor.targets.meta_target import MetaTarget


def culprits(
    target: str,
    weightless: MetaTarget,
    plan: Plan,
    failed: str,
    config: Any = None,
    tokens: int | None = None,
) -> Contradictions:
    """The values of the target's config.json that are to blame; empty where nothing that was tried helps.

    Args:
        failed: What the model did, as in `Contradiction.failed`.
        config: The configuration as transformers read it; None where it could not.
        tokens: Tokens in a sample of the batch.
    """
    from vlmdoctor.targets.checkpoint import checkpoint

    path = Path(target).expanduser()
    file = path / "config.json" if path.is_dir() else path
    if file.suffix != ".json":
        return Contradictions()

    def runs(folder: str) -> bool:
        subject = checkpoint(folder, Path(folder), False, weightless).subject
        return subject.batch is not None and shapes_under(subject, plan).failure is None

    written = read_json(file)
    return contradictions(written, failed, runs, config=config, tokens=tokens)


class NoModelGatherer(Gatherer):
    """Has the evidence that it was given, and says of all other that there is no model to gather it from."""

    def __init__(self, *given: object) -> None:
        super().__init__(None, given, depth="shapes")

    def _probe(self, evidence_class: type) -> object:
        raise Unavailable("the model can't be built")
