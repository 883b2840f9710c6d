"""Chapters 08 to 15: the reference and PyTorch agree on random calls of every component, valid or not."""

import pytest

from spec.agreement import COMPONENTS, verdicts

SEED = 20


def agree(component: str, calls: int, first: int = 0) -> None:
    for verdict in verdicts(component, COMPONENTS[component], calls, SEED, first):
        assert verdict.outcome != "differ", f"{verdict.problem}\n    to repeat: {verdict.repeat}"


@pytest.mark.parametrize("component", COMPONENTS)
def test_random_calls_agree_with_pytorch(component: str) -> None:
    agree(component, 4)


@pytest.mark.slow
@pytest.mark.parametrize("component", COMPONENTS)
def test_many_random_calls_agree_with_pytorch(component: str) -> None:
    agree(component, 400, first=4)
