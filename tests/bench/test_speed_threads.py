"""The pool that all sessions of a process share; in processes of their own, as it never goes away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, sys
import onnxruntime
from cospec.runtime.engines.onnxruntime import OrtOptions
from cospec.errors import UsageError
from cospec.runtime.decoding.session import load

bundle, made_by_others = sys.argv[1], sys.argv[2] == "others"
found = {}

def tokens(**options):
    try:
        session = load(bundle, options=OrtOptions(**options))
        return session.generate("What is 12 + 30?", max_tokens=16).tokens
    except UsageError as error:
        return error.message

if made_by_others:
    onnxruntime.set_global_thread_pool_sizes(1, 1)
else:
    found["own"] = tokens(threads=1)
    found["shared"] = tokens(threads=1, shared_pool=True)
found["other size"] = tokens(threads=2, shared_pool=True)
found["any size"] = tokens(shared_pool=True)
found["joins"] = tokens()
print(json.dumps(found))
"""


COMMAND = """
import sys
import onnxruntime
from cospec.runtime.cli.run import main

main(["--engine-dir", *sys.argv[1:], "--threads", "1", "What is 2 + 3?"], standalone_mode=False)
options = onnxruntime.SessionOptions()
options.use_per_session_threads, options.log_severity_level = True, 3
try:
    onnxruntime.InferenceSession(sys.argv[1] + "/draft/model.onnx", sess_options=options)
    print("own")
except Exception as error:
    assert "use_per_session_threads" in str(error), error
    print("shared")
"""


@pytest.mark.parametrize("words", [[], ["--pool", "shared"], ["--pool", "own"]])
def test_a_command_has_a_pool_for_each_model_unless_told_otherwise(tiny_pair_bundle, words):
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, str(tiny_pair_bundle), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ("shared" if "shared" in words else "own")
    assert "W:onnxruntime" not in done.stderr


def found(bundle: Path, who: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(bundle), who],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_one_pool_serves_all_sessions_and_gives_the_same_text(tiny_pair_bundle):
    result = found(tiny_pair_bundle, "ours")
    assert len(result["own"]) > 0
    assert result["own"] == result["shared"] == result["any size"] == result["joins"]
    assert "share 1 threads, but 2 were asked for" in result["other size"]


def test_a_pool_that_other_code_made_is_used_as_it_is_or_refused(tiny_pair_bundle):
    result = found(tiny_pair_bundle, "others")
    assert "other code made" in result["other size"]
    assert isinstance(result["any size"], list)
    assert result["any size"] == result["joins"]
