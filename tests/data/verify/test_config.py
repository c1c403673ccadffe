"""Configs of the answer checker: values that cannot work are refused by name."""

import pytest

from data_pipeline.verify.config import CheckerConfig, VerifyConfig


@pytest.mark.parametrize(("field", "value"), [("workers", 0), ("deadline", 0.0), ("deadline", -1.0)])
def test_impossible_checker_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"checker\.{field}={value:g} must be"):
        CheckerConfig(**{field: value})


def test_negative_limit_is_refused():
    with pytest.raises(ValueError, match="max_bad_lines=-1 must be at least 0"):
        VerifyConfig(source="answers.jsonl", out="scored.jsonl", max_bad_lines=-1)
