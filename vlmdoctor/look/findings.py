"""What the rules say of the data alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmdoctor.engine import Gatherer, judge
from vlmdoctor.evidence.data import Data
from vlmdoctor.rulebook import all_rules

if TYPE_CHECKING:
    from vlmdoctor.finding import Finding


def data_findings(data: Data) -> tuple[Finding, ...]:
    """Findings of the rules that need nothing but data."""
    rules = [
        rule
        for rule in all_rules()
        if any(needed is Data for needed, _ in rule.requirements.values())
        and all(needed is Data or optional for needed, optional in rule.requirements.values())
    ]
    return judge(rules, Gatherer(None, (data,)), command="look", target="").findings
