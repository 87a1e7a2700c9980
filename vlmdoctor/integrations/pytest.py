"""The pytest fixture `vlmdoctor`: a test that a model can learn.

def test_my_model_can_learn(vlmdoctor):
    vlmdoctor(model, batch, optimizer=optimizer)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from vlmdoctor.plain_text import text_of


@pytest.fixture(name="vlmdoctor")
def doctor(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`vlmdoctor.check` with the same arguments: fails the test at findings, and returns the report else."""
    return functools.partial(_checked, request.node)


def _checked(test: pytest.Item, /, *arguments: Any, **keywords: Any) -> Any:
    from vlmdoctor import FindingsError, check
    from vlmdoctor.reporters.card import summary_line

    report = check(*arguments, **keywords)
    try:
        report.raise_for_findings(fail_on=report.fail_on)
    except FindingsError as error:
        cards = text_of(error)
    else:
        return report
    # A failure's own text stands in pytest's summary once more, and in CI it is not cut there.
    test.add_report_section("call", "vlmdoctor", cards)
    found = "; ".join(f"{one.message} [{one.rule} {one.code}]" for one in report.failing)
    # Outside of the handler: pytest would print the text of both exceptions.
    pytest.fail(found or summary_line(report), pytrace=False)
