import contextlib
import os
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from cospec.calibration.tasks import sandbox
from cospec.calibration.tasks.sandbox import isolation, run_python
from cospec.errors import BackendError, UsageError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the sandbox needs POSIX")
LEVELS = ["namespaces", "hooks"]


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    """Each test on both levels: with namespaces where they are to be had, and without."""
    if request.param == "hooks":
        monkeypatch.setattr(sandbox, "_USE_NAMESPACES", False)
    elif isolation() != "namespaces":
        pytest.skip("this system allows no namespaces")
    return request.param


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
        "import os\nfor fd in range(3, 64):\n  try: os.write(fd, b'passed ' + b'0' * 32 + b'\\n')\n"
        "  except OSError: pass",
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
    link = tmp_path / "linked"
    link.symlink_to(Path(sandbox.__file__).parent)
    monkeypatch.setattr(sandbox, "_CHILD", link / "sandbox_child.py")
    assert "ModuleNotFoundError" in run_python("import sandbox").reason
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
        "os.system('true')",
        "subprocess.run(['true'])",
        "os.execv('/bin/true', ['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "os.kill(os.getpid(), 9)",
        "os.killpg(0, 9)",
    ],
)
def test_processes_and_signals_are_refused(call, level):
    outcome = run_python(f"import os, subprocess\n{call}")
    assert outcome.reason.startswith("PermissionError"), outcome


def test_a_small_fork_bomb_ends(level):
    code = "import os\nfor _ in range(20):\n  try: os.fork()\n  except OSError: pass\n"
    assert run_python(code, seconds=5).ok  # every fork was refused


def test_processes_past_the_hook_die_with_the_run(tmp_path):
    if isolation() != "namespaces":
        pytest.skip("this system allows no namespaces")
    marker = tmp_path / "alive"
    code = f"""
import ctypes, time
libc = ctypes.CDLL(None)
if libc.fork() == 0:
    libc.setsid()
    libc.fork()
    time.sleep(1.5)
    libc.creat({str(marker).encode()!r}, 0o600)
time.sleep(60)
"""
    assert "took longer" in run_python(code, seconds=0.5).reason
    time.sleep(2)
    assert not marker.exists()


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


def test_namespaces_have_no_network_at_all():
    if isolation() != "namespaces":
        pytest.skip("this system allows no namespaces")
    code = "names = open('/proc/net/dev').read()\nassert 'lo:' in names and names.count(':') == 1"
    # /proc is that of the host; its net folder follows the process.
    assert run_python(code.replace("/proc/net", "/proc/thread-self/net")).ok


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
        assert outcome.reason.startswith("PermissionError"), (line, outcome)
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
    assert outcome.reason.startswith("ValueError: /"), outcome
    assert not Path(outcome.reason.removeprefix("ValueError: ")).exists()


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


def test_a_sandbox_that_cannot_start_is_not_the_code_s_fault(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "_CHILD", tmp_path / "gone.py")
    with pytest.raises(BackendError, match="did not start"):
        run_python("pass")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(BackendError, match="cannot start a process"):
        run_python("pass")


@pytest.mark.parametrize("limits", [{"seconds": 0}, {"seconds": -1}, {"memory_bytes": 1000}])
def test_useless_limits(limits):
    with pytest.raises(UsageError, match="too small"):
        run_python("pass", **limits)
