import contextlib
import marshal
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from attacks.sandbox_campaign import only

from cospec.calibration.tasks import isolation as ways
from cospec.calibration.tasks import sandbox
from cospec.calibration.tasks.checkers import require_working
from cospec.calibration.tasks.isolation import LEVELS
from cospec.calibration.tasks.item import CheckerSpec, Task
from cospec.calibration.tasks.sandbox import isolation, require_isolation, run_python
from cospec.errors import BackendError, UsageError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs POSIX")


@pytest.fixture(params=LEVELS)
def level(request):
    """Each test on both levels: with namespaces where they are to be had, and without."""
    if LEVELS.index(isolation()) > LEVELS.index(request.param):
        pytest.skip("this system allows no namespaces")
    with only(request.param):
        yield request.param


def test_code_that_ends_passes(level):
    outcome = run_python("x = sum(range(10))\nassert x == 45\nprint('fine')")
    assert (outcome.ok, outcome.reason, outcome.isolation) == (True, "", level)


def test_reports_what_was_raised(level):
    outcome = run_python("assert 1 == 2, 'wrong value'")
    assert not outcome.ok
    assert outcome.reason == "AssertionError: wrong value"


@pytest.mark.parametrize(
    "ending",
    [
        "import sys; sys.exit(0)",
        "raise SystemExit",
        "import os; os._exit(0)",
        "import os; os.abort()",
        "exit()",
        "raise KeyboardInterrupt",
        "import ctypes; ctypes.string_at(0)",
        "def f(): f()\nf()",
        "import signal; signal.raise_signal(signal.SIGSEGV)",
        "import signal; signal.raise_signal(signal.SIGKILL)",
        "def broken(:",
        "x = '\\0' 'unclosed",
        "\0",
        "\ud800",
    ],
)
def test_an_end_before_the_tests_is_no_pass(ending):
    outcome = run_python([ending, "assert True"])
    assert not outcome.ok
    assert outcome.reason


@pytest.mark.parametrize(
    "line",
    [
        "print('passed')",
        "import os\nfor fd in range(3, 64):\n  try: os.write(fd, b'passed \\n')\n"
        "  except OSError: pass",
        "import os\nfor fd in range(3, 64):\n  try: os.close(fd)\n  except OSError: pass",
        "import os\nfor fd in range(3, 64):\n  try: os.write(fd, b'x' * 60000)\n"
        "  except OSError: pass",
    ],
)
def test_a_guessed_report_is_no_pass(line, level):
    assert not run_python([line, "raise ValueError"]).ok


def test_parts_share_names_and_not_syntax():
    assert run_python(["def f(): return 3", "assert f() == 3"]).ok
    assert run_python(["x = 1", "def f(): return x + 2", "assert f() == 3"]).ok
    assert not run_python(["x = '''", "assert False"]).ok
    assert not run_python(["if False:\n  pass\n\\", "assert False"]).ok


def test_main_guard_sleeps_and_dataclasses_work():
    code = (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n  x: int\n"
        "if __name__ == '__main__':\n  input()\nassert P(1).x == 1"
    )
    assert run_python(code).ok


def test_order_of_sets_is_the_same_in_every_run():
    code = "raise ValueError(list({'alpha', 'beta', 'gamma', 'delta', 'epsilon'}))"
    assert len({run_python(code).reason for _ in range(3)}) == 1


def test_own_modules_do_not_hide_the_standard_library(tmp_path, monkeypatch):
    assert "ModuleNotFoundError" in run_python("import sandbox").reason
    (tmp_path / "math.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    assert run_python("import math, numbers, code, token\nassert numbers.Number").ok


@pytest.mark.parametrize("loop", ["while True: pass", "import time\ntime.sleep(60)", "input()"])
def test_endless_code_is_stopped_in_time(loop, level):
    start = time.monotonic()
    outcome = run_python(loop, seconds=0.5)
    assert not outcome.ok
    assert time.monotonic() - start < 10
    assert "took longer than 0.5 s" in outcome.reason or "EOFError" in outcome.reason


def test_cpu_limit_holds_without_the_parent(level):
    code = "import resource\nassert resource.getrlimit(resource.RLIMIT_CPU)[0] == 3"
    assert run_python(code, seconds=2).ok


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS enforces no limit on address space")
@pytest.mark.parametrize(
    "hog", ["x = bytearray(10**10)", "x = []\nwhile True: x.append('y' * 10**6)"]
)
def test_memory_is_limited(hog, level):
    outcome = run_python(hog, memory_bytes=256 << 20)
    assert not outcome.ok
    assert "MemoryError" in outcome.reason or "ended its process" in outcome.reason


def test_huge_output_is_dropped(level):
    code = "import sys\nfor _ in range(200): print('x' * 10**5); sys.stderr.write('y' * 10**5)"
    assert run_python(code, seconds=30).ok


def test_huge_error_is_cut():
    assert len(run_python("raise ValueError('x' * 10**7)").reason) <= 300
    assert run_python("class E(Exception):\n  def __str__(self): 1/0\nraise E").reason == "E"


def test_file_size_is_limited():
    outcome = run_python("open('big', 'wb').write(bytes(32 << 20))")
    assert "File too large" in outcome.reason


@pytest.mark.parametrize(
    "call",
    [
        "os.fork()",
        "subprocess.run(['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.system('true') == 0 or os.fork()",
    ],
)
def test_processes_are_refused(call, level):
    outcome = run_python(f"import os, subprocess\n{call}")
    assert outcome.reason.startswith("PermissionError"), outcome


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_of_a_run_outlives_it(level):
    mark = f"x = {os.getpid()}"
    code = f"{mark}\nimport signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: pass"
    assert "took longer" in run_python(code, seconds=0.5).reason
    _wait(lambda: not _running())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_run_ends_with_the_process_that_asked_for_it(level):
    code = (
        "from attacks.sandbox_campaign import only\n"
        "from cospec.calibration.tasks.sandbox import isolation, run_python\n"
        f"with only({level!r}):\n    print(isolation(), flush=True)\n"
        "    run_python('while True: pass', seconds=60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as asking:
        try:
            assert asking.stdout.readline().decode().strip() == level
            _wait(lambda: len(_running()) >= 2)
        finally:
            asking.kill()
    _wait(lambda: not _running())


def _wait(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _running():
    paths = Path("/proc").glob("[0-9]*/cmdline")
    return [path for path in paths if "import marshal, sys; stream" in _text(path)]


def _text(path):
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def test_no_connection_arrives(level):
    arrived = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(1.5)

        def wait():
            with contextlib.suppress(TimeoutError):
                arrived.append(server.accept())

        thread = threading.Thread(target=wait)
        thread.start()
        port = server.getsockname()[1]
        outcome = run_python(f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)")
        thread.join()
    assert outcome.reason.startswith("PermissionError")
    assert not arrived


def test_asyncio_works(level):
    assert run_python("import asyncio\nasync def f(): return 1\nassert asyncio.run(f()) == 1").ok


def test_files_outside_are_not_changed(tmp_path, level):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    folder = str(tmp_path)
    for line in (
        f"open({str(victim)!r}, 'w')",
        f"open({str(victim)!r}, 'a')",
        f"open({folder + '/new'!r}, 'x')",
        f"import os; os.remove({str(victim)!r})",
        f"import os; os.rename({str(victim)!r}, 'here')",
        f"import os; os.truncate({str(victim)!r}, 0)",
        f"import os; os.open({str(victim)!r}, os.O_WRONLY | os.O_TRUNC)",
        f"import os; os.symlink({str(victim)!r}, 'link'); open('link', 'w')",
        f"import shutil; shutil.rmtree({folder!r})",
        f"import pathlib; pathlib.Path({str(victim)!r}).write_text('gone')",
    ):
        outcome = run_python(line)
        assert outcome.reason.startswith(("PermissionError", "FileNotFoundError")), (line, outcome)
    assert victim.read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["victim"]


def test_own_folder_can_be_written_and_is_gone_after(level):
    code = """
import os, tempfile, pathlib
assert os.listdir() == []
pathlib.Path("a").write_text("x"); os.mkdir("d"); os.rename("a", "d/b"); os.remove("d/b")
with tempfile.NamedTemporaryFile() as f: f.write(b"x")
open(os.devnull, "w").write("x")
raise ValueError(os.getcwd())
"""
    outcome = run_python(code)
    assert outcome.reason.startswith("ValueError: /tmp"), outcome
    assert level == "bubblewrap" or not Path(outcome.reason.removeprefix("ValueError: ")).exists()


def test_folders_in_folders_are_removed(level, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    code = "import os\nfor i in range(1200):\n    os.mkdir('d'); os.chdir('d')"
    assert run_python(code, seconds=30).ok
    locked = "import os\nos.mkdir('d'); open('d/x', 'w'); os.chmod('d', 0)"
    assert run_python(locked).ok
    assert not list(tmp_path.iterdir())


def test_environment_is_empty():
    os.environ["COSPEC_TEST_SECRET"] = "s3cret"
    try:
        assert run_python("import os\nassert 'COSPEC_TEST_SECRET' not in os.environ").ok
    finally:
        del os.environ["COSPEC_TEST_SECRET"]


def test_threads_left_behind_do_not_hold_the_run():
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()"
    assert run_python(code, seconds=20).ok


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_no_descriptor_leaks():
    before = len(list(Path("/proc/self/fd").iterdir()))
    for code in ("pass", "1/0", "import os; os._exit(0)"):
        run_python(code)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.fixture
def untried():
    sandbox._method.cache_clear()
    yield
    sandbox._method.cache_clear()


def test_a_sandbox_that_cannot_start_is_not_the_code_s_fault(monkeypatch, untried):
    monkeypatch.setattr(sys, "executable", "/no/python")
    with pytest.raises(BackendError, match="cannot start a process"):
        run_python("pass")
    monkeypatch.undo()
    monkeypatch.setattr(sandbox, "_program", lambda: marshal.dumps(compile("1 / 0", "x", "exec")))
    with pytest.raises(BackendError, match="does not start"):
        run_python("pass")


@pytest.mark.parametrize("missing", ["seccompy", "bwrap"])
def test_a_machine_without_bubblewrap_is_refused_unless_told(missing, monkeypatch, untried):
    if missing == "bwrap":
        monkeypatch.setattr(ways.shutil, "which", lambda name: None)
        monkeypatch.setattr(ways, "find_spec", lambda name: name == "seccompy" or None)
    else:
        monkeypatch.setattr(ways, "find_spec", lambda name: None)
    assert isolation() == "limits"
    tasks = [Task("t", "p", CheckerSpec("python"), {"test": "assert True"})]
    with pytest.raises(BackendError, match="'bubblewrap' is required") as caught:
        require_working(tasks)
    assert "--sandbox-level limits" in str(caught.value)
    require_working(tasks, "limits")
    require_working([Task("t", "p", CheckerSpec("number"), 1)])


def test_a_stronger_level_than_required_is_taken():
    require_isolation("limits")
    require_isolation(isolation())


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"seconds": -1}, {"memory_bytes": 1000}])
def test_useless_limits(limits):
    with pytest.raises(UsageError, match="too small"):
        run_python("pass", **limits)
