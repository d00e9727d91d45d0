"""The work folder: what is found again, what is made again, and what is refused."""

from __future__ import annotations

import pytest

from cospec.calibration.weights.work_folder import work_folder
from cospec.errors import GateError, ResourceError, UsageError
from cospec.export.decoder_export import Exported
from cospec.runtime.bundle.reader import read_manifest

REQUEST = {"target": "a", "text": "b"}


@pytest.fixture
def export(tiny_pair_bundle):
    """Writes a graph of a few bytes; `export.calls` counts."""
    entry = read_manifest(tiny_pair_bundle).models.target

    def write(graph):
        write.calls += 1
        graph.write_bytes(b"graph")
        return Exported(entry, {"rows": 3}, None)

    write.calls = 0
    return write


def test_a_graph_is_exported_once(tmp_path, export):
    for _ in range(2):
        with work_folder(tmp_path / "w", REQUEST) as work:
            found = [work.exported("target-int4", export) for _ in range(2)]
        assert found[0] == found[1]
        assert found[0].parity == {"rows": 3}
        assert found[0].entry.kv_shapes
    assert export.calls == 1


@pytest.mark.parametrize("damage", ["changed", "deleted", "another"])
def test_a_graph_that_is_not_whole_is_exported_again(tmp_path, export, damage):
    with work_folder(tmp_path / "w", REQUEST) as work:
        work.exported("target-int4", export)
        graph = work.graph("target-int4")
    if damage == "changed":
        graph.write_bytes(b"grape")
    elif damage == "deleted":
        graph.unlink()
    else:
        graph.with_name("more").touch()
    with work_folder(tmp_path / "w", REQUEST) as work:
        work.exported("target-int4", export)
        assert [path.read_bytes() for path in graph.parent.iterdir()] == [b"graph"]
    assert export.calls == 2


def test_a_refusal_is_remembered_and_a_failure_is_not(tmp_path, export):
    def refused(graph):
        graph.write_bytes(b"half")
        raise GateError("beyond the limit: int4 +30%")

    def failing(graph):
        raise OSError("no room")

    for write in (refused, export):
        with work_folder(tmp_path / "w", REQUEST) as work:
            with pytest.raises(GateError, match=r"int4 \+30%"):
                work.exported("target-int4", write)
            assert not work.graph("target-int4").exists()
    assert export.calls == 0
    with work_folder(tmp_path / "w", REQUEST) as work:
        with pytest.raises(OSError, match="no room"):
            work.exported("draft-int4", failing)
        work.exported("draft-int4", export)
    assert export.calls == 1


def test_another_request_is_refused_by_name(tmp_path):
    with work_folder(tmp_path / "w", REQUEST) as work:
        work.journal.write("reference", 1)
    with (
        pytest.raises(UsageError, match=r"unfinished job with another text\n"),
        work_folder(tmp_path / "w", REQUEST | {"text": "c"}),
    ):
        pass
    with work_folder(tmp_path / "w", REQUEST) as work:
        assert work.journal.done["reference"] == 1


def test_other_folders_and_other_processes_are_left_alone(tmp_path):
    (tmp_path / "w").mkdir()
    (tmp_path / "w/thesis.txt").write_text("mine")
    with (
        pytest.raises(ResourceError, match="holds no unfinished job"),
        work_folder(tmp_path / "w", REQUEST),
    ):
        pass
    assert (tmp_path / "w/thesis.txt").read_text() == "mine"
    with (
        work_folder(tmp_path / "v", REQUEST),
        pytest.raises(ResourceError, match="is writing it"),
        work_folder(tmp_path / "v", REQUEST),
    ):
        pass
