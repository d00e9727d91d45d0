"""Parts of a measurement that was stopped are taken over; a finished one leaves nothing."""

from __future__ import annotations

import pytest

from cospec.bench.speed.journal import Journal
from cospec.bench.speed.prepare import journal


class StoppedError(Exception):
    pass


def stop() -> int:
    raise StoppedError


def test_a_run_that_was_stopped_goes_on_with_the_next_part(tmp_path):
    said: list[str] = []
    path = tmp_path / "work" / "kept.json"
    first = Journal(path, said.append)
    assert first.once("a", lambda: {"rows": [1]}) == {"rows": [1]}
    with pytest.raises(StoppedError):
        first.once("b", stop)
    assert not said

    second = Journal(path, said.append)
    assert len(said) == 1
    assert "a from" in said[0]
    assert second.once("a", stop) == {"rows": [1]}
    assert second.once("b", lambda: 2) == 2
    second.finish()
    assert not path.exists()
    assert Journal(path, said.append).once("a", lambda: 3) == 3


def test_other_facts_have_another_journal(tmp_path):
    kept = journal(tmp_path, "sweep", {"tokens": 64}, print)
    kept.once("a", lambda: 1)
    assert journal(tmp_path, "sweep", {"tokens": 64}, print).once("a", stop) == 1
    with pytest.raises(StoppedError):
        journal(tmp_path, "sweep", {"tokens": 32}, print).once("a", stop)
