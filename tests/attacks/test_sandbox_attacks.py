"""A part of the campaign against the sandbox; all of it is `python -m attacks.sandbox_campaign`."""

import sys

import pytest
from attacks.sandbox_campaign import (
    CHEATS,
    ESCAPES,
    HONEST,
    escaped,
    failed_honest,
    only,
    passed_cheats,
)

from cospec.calibration.tasks.isolation import LEVELS
from cospec.calibration.tasks.sandbox import isolation

STEP = 5
"""Of the campaign's cases every fifth is tried here."""


@pytest.fixture(params=LEVELS)
def level(request):
    if LEVELS.index(isolation()) > LEVELS.index(request.param):
        pytest.skip(f"this machine isolates by {isolation()} only")
    with only(request.param):
        yield request.param


def part(kinds):
    return [case for cases in kinds.values() for case in cases][::STEP]


def test_the_campaign_is_large_enough():
    assert sum(map(len, CHEATS.values())) >= 80
    assert sum(map(len, ESCAPES.values())) >= 80
    assert sum(map(len, HONEST.values())) >= 60
    names = [
        case[0] for kinds in (CHEATS, ESCAPES, HONEST) for cases in kinds.values() for case in cases
    ]
    assert len(names) > 300


def test_no_cheat_passes(level):
    assert passed_cheats(part(CHEATS)) == []


def test_honest_solutions_pass(level):
    assert failed_honest(part(HONEST)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's")
def test_nothing_escapes():
    if isolation() != LEVELS[0]:
        pytest.skip(f"this machine isolates by {isolation()} only")
    assert escaped(part(ESCAPES)) == []
