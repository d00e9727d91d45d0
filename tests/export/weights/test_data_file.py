"""A data file that a full disk cut short is an error, also where numpy says nothing."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import onnx_ir
import pytest

from cospec.export.weights.data_file import save_graph

SIZE = 20_000

MODEL = """
import numpy as np, onnx_ir
value = onnx_ir.Value(name="w", const_value=onnx_ir.tensor(np.arange(20_000, dtype=np.uint8)))
graph = onnx_ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 18}, name="g")
model = onnx_ir.Model(graph, ir_version=10)
"""
LIMITED = f"""
import resource, sys
from pathlib import Path
from cospec.export.weights.data_file import save_graph
from cospec.runtime.bundle.durable import lack_of_room
{MODEL}
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
try:
    save_graph(model, Path(sys.argv[1]), "m.data", 0)
    print("written")
except OSError as error:
    print(lack_of_room(error))
"""


def test_a_graph_is_written_with_its_weights_beside_it(tmp_path):
    made: dict[str, Any] = {}
    exec(MODEL, made)
    save_graph(made["model"], tmp_path / "m.onnx", "m.data", 0)
    assert (tmp_path / "m.data").stat().st_size == SIZE
    found = onnx_ir.load(tmp_path / "m.onnx").graph.initializers["w"].const_value
    np.testing.assert_array_equal(found.numpy(), np.arange(SIZE, dtype=np.uint8))


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_FSIZE as Linux has it")
@pytest.mark.parametrize("short", [0, 1, 100, SIZE // 2])
def test_a_data_file_that_is_too_short_is_a_full_disk(tmp_path, short):
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "m.onnx"), str(SIZE - short)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expected = "larger than this process may write" if short else "written"
    assert expected in done.stdout, done.stdout + done.stderr
