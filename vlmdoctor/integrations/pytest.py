"""The pytest fixture `vlmdoctor`: a test that a model can learn.

def test_my_model_can_learn(vlmdoctor):
    vlmdoctor(model, batch, optimizer=optimizer)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vlmdoctor.plain_text import text_of


@pytest.fixture(name="vlmdoctor")
def doctor() -> Callable[..., Any]:
    """`vlmdoctor.check` with the same arguments: fails the test at findings, and returns the report else."""
    return _checked


def _checked(*arguments: Any, **keywords: Any) -> Any:
    from vlmdoctor import FindingsError, check

    report = check(*arguments, **keywords)
    try:
        report.raise_for_findings(fail_on=keywords.get("fail_on", "error"))
    except FindingsError as error:
        failure = text_of(error)
    else:
        return report
    # Outside of the handler: pytest would print the text of both exceptions.
    pytest.fail(failure, pytrace=False)
