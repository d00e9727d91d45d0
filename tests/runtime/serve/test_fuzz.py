"""A bounded part of `tests/attacks/http_requests.py`."""

from __future__ import annotations

from attacks.http_requests import attack
from http_server import silence


def test_no_request_gets_a_5xx_or_a_traceback(served, caplog):
    with silence(caplog):
        outcome = attack(served.address, 400, seed=7)
    assert outcome.failures == []
    assert sum(outcome.statuses.values()) >= 400
    assert outcome.statuses["200"] > 0, "some requests are answered"
    assert outcome.statuses["400"] > outcome.statuses["closed"], "most are read, and refused"
