"""A few command lines drawn from the command tree, always the same; ``command_fuzz.py`` runs more."""

import pytest
from command_fuzz import cases, check
from hypothesis import HealthCheck, Phase, given, settings


@pytest.mark.long
@settings(
    max_examples=100,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(case=cases())
def test_a_command_is_served_or_refused_in_one_line(corpus, case):
    found, wrong = check(case, corpus, seconds=0.1)
    assert not wrong, (wrong, found.err)
