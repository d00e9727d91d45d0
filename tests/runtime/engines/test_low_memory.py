"""Weights in fp16 are widened one at a time, so that a large model fits while it is checked."""

from __future__ import annotations

import subprocess
import sys

import pytest

MATRICES, SIDE = 24, 1024
ROOM = 10 * 4 * SIDE * SIDE
"""Bytes that a pass may allocate: a few matrices in fp32, and far less than all of them."""

PASS = f"""
import resource, sys
from pathlib import Path
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from cospec.runtime.engines.ort_session import OrtOptions, open_session

matrix = np.eye({SIDE}, dtype=np.float16)
nodes = [helper.make_node("MatMul", [f"x{{i}}", f"w{{i}}"], [f"x{{i + 1}}"]) for i in range({MATRICES})]
weights = [numpy_helper.from_array(matrix, f"w{{i}}") for i in range({MATRICES})]
shape = ("n", {SIDE})
x, y = (helper.make_tensor_value_info(f"x{{i}}", TensorProto.FLOAT16, shape) for i in (0, {MATRICES}))
model = helper.make_model(
    helper.make_graph(nodes, "g", [x], [y], weights), opset_imports=[helper.make_opsetid("", 18)]
)
model.ir_version = 10
path = Path(sys.argv[1])
onnx.save(model, path)
del model, weights, nodes
options = OrtOptions(threads=1, provider="cpu", low_memory=True)
session, _ = open_session(path, options)
rows = np.ones((2, {SIDE}), np.float16)
used = next(int(s.split()[1]) for s in open("/proc/self/status") if s.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + {ROOM}, -1))
assert (session.run(None, {{"x0": rows}})[0] == 1).all()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is of Linux")
def test_a_pass_in_low_memory_holds_few_matrices_in_fp32(tmp_path):
    command = [sys.executable, "-c", PASS, str(tmp_path / "m.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-800:]
