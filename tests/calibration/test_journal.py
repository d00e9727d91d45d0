"""The parts of a job that was stopped are kept; a finished job leaves nothing behind."""

from __future__ import annotations

import pytest

from cospec.calibration.journal import Journal


def test_a_job_that_was_stopped_continues_with_the_next_part(tmp_path):
    path = tmp_path / "work" / "kept.jsonl"
    Journal(path).write("a", {"rows": [1]})
    second = Journal(path)
    assert second.done == {"a": {"rows": [1]}}
    second.write("b", 2)
    assert Journal(path).done == {"a": {"rows": [1]}, "b": 2}
    second.clear()
    assert not path.exists()
    assert second.done == Journal(path).done == {}


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_line_that_a_kill_cut_is_not_counted(tmp_path, cut):
    path = tmp_path / "j.jsonl"
    Journal(path).write("a", {"x": 1})
    whole = path.stat().st_size
    Journal(path).write("b", {"x": "\u2028ü"})
    kept = max(whole, path.stat().st_size - 1 - cut)  # the last byte alone is no part of a record
    path.write_bytes(path.read_bytes()[:kept])
    assert Journal(path).done == {"a": {"x": 1}}
    Journal(path).write("b", {"x": 3})
    assert Journal(path).done == {"a": {"x": 1}, "b": {"x": 3}}


def test_damaged_lines_of_every_kind_are_skipped(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_bytes(b'[]\n3\n{"key": "x"}\n\xff\xfe\n\n{"key": "a", "record": 1}\n')
    assert Journal(path).done == {"a": 1}


def test_without_a_path_nothing_is_written():
    journal = Journal(None)
    journal.write("a", 1)
    assert journal.done == {"a": 1}
    journal.clear()
    assert journal.done == {}
