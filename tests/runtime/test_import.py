"""What an import costs: numpy, and nothing that takes seconds or may not be installed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tensorrt")
LIGHT = ("tokenizers", "click", "tqdm", "jinja2")


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules, outside the standard library, that `code` leaves imported."""
    script = (
        "import sys; before = set(sys.modules)\n"
        f"{code}\n"
        "import json; names = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(json.dumps(sorted(names - set(sys.stdlib_module_names))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("code", ["import cospec", "import cospec.errors"])
def test_the_package_needs_numpy_at_most(code):
    assert {"cospec"} <= loaded_by(code) <= {"cospec", "numpy"}


def test_the_session_module_needs_numpy_and_msgspec_only():
    names = loaded_by("import cospec; cospec.load, cospec.Session, cospec.OrtOptions")
    # msgspec takes typing_extensions where it happens to be installed.
    assert names - {"typing_extensions"} == {"cospec", "msgspec", "numpy"}


def test_a_run_loads_the_runtime_and_never_the_exporter(tiny_bundle):
    code = (
        "import cospec\n"
        f"session = cospec.load({str(tiny_bundle.root)!r})\n"
        "session.generate([{'role': 'user', 'content': 'x'}], max_tokens=3)"
    )
    names = loaded_by(code)
    assert {"onnxruntime", "tokenizers", "jinja2"} <= names
    assert not names & ({*HEAVY} - {"onnxruntime"})


def test_the_command_line_help_loads_no_backend():
    code = "from cospec.runtime.cli.run import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert not loaded_by(code) & {*HEAVY}


def test_an_unknown_name_and_every_public_one():
    import cospec

    assert all(getattr(cospec, name) is not None for name in cospec.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cospec.nothing
