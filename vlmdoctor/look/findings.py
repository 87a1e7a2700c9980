"""What the rules say of the data alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmdoctor.engine import Gatherer, judge
from vlmdoctor.evidence.data import Data
from vlmdoctor.rulebook import answerable

if TYPE_CHECKING:
    from vlmdoctor.finding import Finding


def data_findings(data: Data) -> tuple[Finding, ...]:
    """Findings of the rules that need nothing but data."""
    return judge(answerable({Data}), Gatherer(None, (data,)), command="look", target="").findings
